"""What ``overread check`` tries, one module for each side; `service.check` runs them and says what came of it."""

#!/bin/sh
# Make the secrets of the hospital in a box, each once: sh deploy/compose/secrets.sh
# The folder is closed to others on this machine; the files are open within, for the containers' users.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets
chmod 0700 secrets
for name in database_password overread_token grafana_password; do
    [ -s "secrets/$name" ] || python3 -c 'import secrets; print(secrets.token_urlsafe(32), end="")' > "secrets/$name"
    chmod 0444 "secrets/$name"
done
echo "secrets are in $(pwd)/secrets; sign in with overread_token, and at Grafana as admin with grafana_password"

#!/bin/sh
# Install Overread as a service of this machine, or bring it to this version: sudo sh deploy/systemd/install.sh
#
# Needs Python 3.11 or newer with venv, systemd, and a package index; without one: PIP_NO_INDEX=1 and
# PIP_FIND_LINKS=FOLDER, as deploy/airgap.md says. Nothing of a site's own is overwritten.
set -eu
cd "$(dirname "$0")/../.."

install -m 0644 deploy/systemd/overread.sysusers /usr/lib/sysusers.d/overread.conf
systemd-sysusers /usr/lib/sysusers.d/overread.conf

[ -x /opt/overread/bin/pip ] || python3 -m venv /opt/overread
/opt/overread/bin/pip install --quiet --require-hashes --only-binary=:all: --requirement deploy/requirements.lock
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
python3 -m venv "$build/venv"
"$build/venv/bin/pip" install --quiet --require-hashes --only-binary=:all: --requirement deploy/build.lock
cp -R pyproject.toml README.md LICENSE service "$build/"
"$build/venv/bin/pip" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$build" "$build"
/opt/overread/bin/pip install --quiet --no-deps --no-index --force-reinstall "$build"/overread-*.whl

# Weights that are there stay as they are: a model's new version comes by overread models install --replace.
mkdir -p /opt/overread/models
cp -R models/. /opt/overread/models/
/opt/overread/bin/overread models install --missing --models-directory /opt/overread/models

install -d -m 0750 -o root -g overread /etc/overread
install -d -m 0700 /etc/overread/secrets
[ -e /etc/overread/overread.toml ] || install -m 0640 -g overread deploy/systemd/overread.toml /etc/overread/overread.toml
install -m 0644 deploy/systemd/overread.service /etc/systemd/system/overread.service
if [ -e /proc/driver/nvidia ]; then
    install -D -m 0644 deploy/systemd/gpu.conf /etc/systemd/system/overread.service.d/gpu.conf
fi
[ ! -d /etc/logrotate.d ] || install -m 0644 deploy/systemd/overread.logrotate /etc/logrotate.d/overread
systemctl daemon-reload

echo "Now: set /etc/overread/overread.toml, then"
echo "  sudo -u overread /opt/overread/bin/overread check --config /etc/overread/overread.toml"
echo "  sudo systemctl enable --now overread"

#!/bin/bash
# Installs what a variant of the agent's image has beyond the base: RUNTIME_TYPE is base, java, dotnet or nodejs. Runs as
# root while the image is built, and never afterwards.
set -euo pipefail

install() {
  apt-get update
  apt-get install --yes --no-install-recommends "$@"
}

case ${RUNTIME_TYPE:?} in
  base) ;;
  java) install openjdk-17-jdk-headless maven ;;
  dotnet)
    # From the base's own sources. Debian has no such package: there, Microsoft's have to be added to the base.
    install "${DOTNET_PACKAGE:?}"
    ;;
  nodejs)
    keyring=/usr/share/keyrings/nodesource.asc
    curl --fail --silent --show-error --location --output "$keyring" https://deb.nodesource.com/gpgkey/nodesource-repo.gpg.key
    echo "deb [signed-by=$keyring] https://deb.nodesource.com/node_${NODE_MAJOR:?}.x nodistro main" \
      >/etc/apt/sources.list.d/nodesource.list
    install nodejs
    ;;
  *)
    echo "RUNTIME_TYPE=$RUNTIME_TYPE is none of base, java, dotnet, nodejs" >&2
    exit 1
    ;;
esac

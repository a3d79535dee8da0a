#!/bin/bash
# First process of the agent's container: registers the agent, runs it, and lets a running job end when the container is
# asked to stop. docs/agent-image.md says what it takes and what it promises.
#
# It never downloads anything, and it keeps the token from the jobs: none of its processes, environments and files has it
# once the agent runs.
set -euo pipefail

# Where the image has the agent's package, and where a volume may be mounted: the work folder is there, and the agent
# itself if the package cannot be written to.
readonly package=/opt/azure-pipelines-agent
readonly volume=/azp

# Exit codes of this script. Those below are the agent's: 1 is an error, 2 one that a new start may cure.
readonly usage=64 unavailable=69 unwritable=73 refused=77 misconfigured=78

# Set by signals.
stopping='' stopped=''
# Processes that signals are for.
registering='' listener=''

main() {
  hide_token "$@"
  # The first process of a container gets no signal that it has no trap for.
  trap stop TERM INT
  check
  choose_folder
  trust_certificates
  announce_capabilities
  [ -z "$stopping" ] || exit 0
  # In a process of its own: its memory has held the token, and goes with it.
  register &
  registering=$!
  [ -z "$stopping" ] || stop
  ended "$registering" || exit
  registering=''
  exec 3<&-
  forget_token_file
  [ -z "$stopping" ] || exit 0
  run "$@"
}

fail() {
  local code=$1
  shift
  printf 'error: %s\n' "$*" >&2
  exit "$code"
}

warn() {
  printf 'warning: %s\n' "$*" >&2
}

# What a process is started with stays readable in /proc for as long as it runs, whatever it unsets. So this script
# starts itself anew without the token, which then waits in a pipe and can be read from there once.
hide_token() {
  [ -n "${AZP_TOKEN+set}" ] || return 0
  if [ -z "${AZP_TOKEN_FILE:-}" ] && [ -n "$AZP_TOKEN" ]; then
    exec 3<<<"$AZP_TOKEN"
    export AZP_TOKEN_FILE=/dev/fd/3
  fi
  unset AZP_TOKEN
  exec "$0" "$@"
}

check() {
  [ -n "${AZP_URL:-}" ] || fail "$usage" 'AZP_URL is missing: the URL of the organization, like https://dev.azure.com/my-org'
  [ -n "${AZP_TOKEN_FILE:-}" ] || fail "$usage" 'AZP_TOKEN is missing, and so is AZP_TOKEN_FILE: one of them gives the token'
  [ -r "$AZP_TOKEN_FILE" ] || fail "$usage" "AZP_TOKEN_FILE names $AZP_TOKEN_FILE, which cannot be read"
  AZP_URL=${AZP_URL%/}
  export AZP_POOL=${AZP_POOL:-Default}
  export AZP_AGENT_NAME=${AZP_AGENT_NAME:-${HOSTNAME:-$(uname -n)}}
  export AZP_WORK=${AZP_WORK:-$volume/_work}
  # The token has left the environment already. The names are ignored as well, for agents that are made otherwise. The
  # operator knows its agents by the capability AZDO_RUNNER_OWNER, so that one is never ignored.
  local ignored=,${VSO_AGENT_IGNORE:-},
  ignored=${ignored//,AZDO_RUNNER_OWNER,/,}AZP_TOKEN,AZP_TOKEN_FILE,VSTS_AGENT_INPUT_TOKEN
  export VSO_AGENT_IGNORE=${ignored#,}
  # The agent knows the lower-case name only.
  if [ -n "${NO_PROXY:-}" ]; then export no_proxy=${no_proxy:-$NO_PROXY}; fi
}

# The agent writes into its own folder. Where that is read-only, as in a container with a read-only root, it is laid out
# in the volume: the programs as copies, since they find their folder by where they really are; the large folder of the
# tasks' runtimes as a link, which is what a self-update makes of it, too.
choose_folder() {
  if [ -w "$package" ]; then
    cd "$package"
  elif [ -w "$volume" ]; then
    cd "$volume"
    rm -rf -- bin bin.* externals externals.*
    cp -R "$package"/bin "$package"/*.sh .
    ln -s "$package/externals" externals
  else
    fail "$unwritable" "neither $package nor $volume can be written to as user $(id -u): mount a volume at $volume, or run as user 1000"
  fi
  mkdir -p "$AZP_WORK" || fail "$unwritable" "the work folder $AZP_WORK cannot be made"
  [ -w "$AZP_WORK" ] || fail "$unwritable" "the work folder $AZP_WORK cannot be written to as user $(id -u)"
  # A container that is started again still has the registration of its former life.
  rm -f .agent .credentials .credentials_rsaparams
}

# One bundle of the system's certificates and those that are mounted below /etc/ssl/certs, for all that read such
# bundles. What somebody has set is left alone.
trust_certificates() {
  local folder=/etc/ssl/certs system=/etc/ssl/certs/ca-certificates.crt file sum seen=' '
  local extra=$PWD/.trust/extra.crt bundle=$PWD/.trust/bundle.crt
  rm -rf .trust
  mkdir .trust
  for file in "$folder"/*.crt "$folder"/*/tls.crt "$folder"/*/ca.crt; do
    if [ "$file" = "$system" ] || [ ! -f "$file" ]; then continue; fi
    # The operator mounts the same certificate in two places.
    sum=$(sha256sum <"$file")
    [[ $seen != *" ${sum%% *} "* ]] || continue
    seen+="${sum%% *} "
    if grep -qs -- '-----BEGIN CERTIFICATE-----' "$file"; then
      # awk ends the last line, which may lack its end.
      awk 1 "$file" >>"$extra"
    else
      warn "$file holds no certificate in PEM and is left out"
    fi
  done
  [ -s "$extra" ] || return 0
  if [ -r "$system" ]; then cat "$system" "$extra" >"$bundle"; else cp "$extra" "$bundle"; fi
  export SSL_CERT_FILE=${SSL_CERT_FILE:-$bundle}             # .NET, the agent itself, Python, OpenSSL
  export CURL_CA_BUNDLE=${CURL_CA_BUNDLE:-$bundle}           # curl
  export GIT_SSL_CAINFO=${GIT_SSL_CAINFO:-$bundle}           # git
  export REQUESTS_CA_BUNDLE=${REQUESTS_CA_BUNDLE:-$bundle}   # Python's requests, pip
  export NODE_EXTRA_CA_CERTS=${NODE_EXTRA_CA_CERTS:-$extra}  # Node.js, in addition to its own
  trust_in_java "$extra"
}

# Java reads no bundles: its own store is copied, and the certificates are added.
trust_in_java() {
  local extra=$1 store=$PWD/.trust/cacerts home number=0 certificate
  if [[ ${JAVA_TOOL_OPTIONS:-} = *javax.net.ssl.trustStore* ]] || ! command -v keytool >/dev/null; then return 0; fi
  home=$(java -XshowSettings:properties -version 2>&1 | sed -n 's/^ *java\.home = //p')
  cp "$home/lib/security/cacerts" "$store" && chmod u+w "$store" || return 0
  awk -v folder="$PWD/.trust" '
    /-----BEGIN CERTIFICATE-----/ { file = folder "/" ++number ".pem" }
    file { print >file }
    /-----END CERTIFICATE-----/ { close(file); file = "" }' "$extra"
  for certificate in .trust/*.pem; do
    number=$((number + 1))
    keytool -importcert -noprompt -keystore "$store" -storepass changeit -alias "mounted-$number" \
      -file "$certificate" >/dev/null 2>&1 || warn "Java does not take certificate $number of $extra"
    rm "$certificate"
  done
  local option="-Djavax.net.ssl.trustStore=$store -Djavax.net.ssl.trustStorePassword=changeit"
  export JAVA_TOOL_OPTIONS="${JAVA_TOOL_OPTIONS:+$JAVA_TOOL_OPTIONS }$option"
}

# The agent reads capabilities from this file, which takes names that no variable can have, such as `.net`.
announce_capabilities() {
  {
    if [ -f "$package/capabilities.txt" ]; then cat "$package/capabilities.txt"; fi
    printf '%s=true\n' "${AZP_CAPABILITY:-base}"
  } | sort -u >.capabilities
}

# Registers the agent, and takes that back if the container is asked to stop meanwhile: config.sh itself does not stop.
register() {
  local VSTS_AGENT_INPUT_TOKEN VSTS_AGENT_INPUT_PROXYPASSWORD='' asked_to_stop='' arguments=()
  trap 'asked_to_stop=yes' TERM INT
  VSTS_AGENT_INPUT_TOKEN=$(tr -d '\r\n' <"$AZP_TOKEN_FILE") || fail "$usage" "AZP_TOKEN_FILE names $AZP_TOKEN_FILE, which cannot be read"
  [ -n "$VSTS_AGENT_INPUT_TOKEN" ] || fail "$usage" "there is no token in $AZP_TOKEN_FILE"
  export VSTS_AGENT_INPUT_TOKEN # rather than an argument, which every process can read
  proxy_arguments
  ./config.sh --unattended --acceptTeeEula --replace --auth PAT --url "$AZP_URL" --pool "$AZP_POOL" \
    --agent "$AZP_AGENT_NAME" --work "$AZP_WORK" ${arguments[@]+"${arguments[@]}"} || explain_failure
  [ -z "$asked_to_stop" ] || ./config.sh remove --unattended --auth PAT || warn 'the registration stays'
}

# The agent takes user and password of a proxy apart from its address, and knows no variable for https.
proxy_arguments() {
  local proxy=${http_proxy:-${HTTP_PROXY:-}} user
  [[ $AZP_URL = http:* ]] || proxy=${https_proxy:-${HTTPS_PROXY:-$proxy}}
  [ -n "$proxy" ] || return 0
  [[ $proxy = *://* ]] || proxy=http://$proxy
  user=${proxy#*://}
  user=${user%%/*}
  if [[ $user = *@* ]]; then
    proxy=${proxy%%://*}://${proxy#*@}
    user=${user%@*}
    export VSTS_AGENT_INPUT_PROXYPASSWORD
    VSTS_AGENT_INPUT_PROXYPASSWORD=$(decode "${user#*:}")
    arguments+=(--proxyusername "$(decode "${user%%:*}")")
  fi
  arguments+=(--proxyurl "$proxy")
}

decode() {
  local text=${1//\\/\\\\}
  printf '%b' "${text//%/\\x}"
}

# config.sh has said what it met. This says what it means and what to do, as far as that can be told from here.
explain_failure() {
  local answer status=0 basic
  basic=$(printf ':%s' "$VSTS_AGENT_INPUT_TOKEN" | base64 | tr -d '\n')
  answer=$(printf 'Authorization: Basic %s\n' "$basic" | curl --silent --header @- --max-time 30 --get \
    --data-urlencode "poolName=$AZP_POOL" --write-out '\n%{http_code}' "$AZP_URL/_apis/distributedtask/pools") || status=$?
  case $status in
    0) ;;
    60) fail "$unavailable" "the certificate of $AZP_URL is not trusted: mount that of its authority as /etc/ssl/certs/NAME/tls.crt (spec.certTrustStore)" ;;
    5 | 6) fail "$unavailable" "the name in $AZP_URL, or that of the proxy, cannot be found: check AZP_URL and the cluster's name service" ;;
    *) fail "$unavailable" "$AZP_URL cannot be reached (curl: error $status): check AZP_URL, network and proxy" ;;
  esac
  case ${answer##*$'\n'} in
    200) ;;
    401 | 203 | 302) fail "$refused" "$AZP_URL refuses the token: it may have expired, or be of another organization" ;;
    403) fail "$refused" "$AZP_URL lets the token do too little: it needs the scope Agent Pools (read, manage)" ;;
    404) fail "$misconfigured" "there is no such organization or collection: $AZP_URL" ;;
    *) fail "$unavailable" "$AZP_URL answers with status ${answer##*$'\n'}" ;;
  esac
  if [[ $answer =~ \"count\":[[:space:]]*0[^0-9] ]]; then
    fail "$misconfigured" "there is no agent pool '$AZP_POOL' that this token can see: check AZP_POOL, and who may use the pool"
  fi
  fail "$misconfigured" "the agent could not be registered in pool '$AZP_POOL': see above; the token's user must be an administrator of the pool"
}

# A file with the token is deleted. What is mounted read-only stays, for jobs as well.
forget_token_file() {
  export -n AZP_TOKEN_FILE
  [ "$AZP_TOKEN_FILE" != /dev/fd/3 ] || return 0
  rm -f -- "$AZP_TOKEN_FILE" 2>/dev/null ||
    warn "$AZP_TOKEN_FILE cannot be deleted: jobs can read the token there; AZP_TOKEN would keep it from them"
}

# Runs the agent, again after it has updated itself.
run() {
  local arguments=() updates=0 code once='' argument
  for argument; do
    case $argument in
      --replace) ;; # what config.sh is told anyway
      --once) once=yes ;&
      *) arguments+=("$argument") ;;
    esac
  done
  # As a "service" it leaves its start after an update to us, instead of starting itself in the background.
  [ -n "$once" ] || arguments+=(--startuptype service)
  while :; do
    rm -f _diag/SelfUpdate-*.log.*
    ./bin/Agent.Listener run "${arguments[@]}" &
    listener=$!
    [ -z "$stopping" ] || stop
    code=0
    ended "$listener" || code=$?
    case $code in 3 | 4) ;; *) break ;; esac
    [ -z "$stopping" ] || code=0
    [ "$code" -ne 0 ] || break
    updates=$((updates + 1))
    [ "$updates" -le 3 ] || fail 1 'the agent wants to update itself again and again: build the image with the version that the server asks for'
    finish_update
  done
  # Somebody who is killed on request has not failed.
  if [ -n "$stopped" ] && [ "$code" -eq 143 ]; then code=0; fi
  deregister
  exit "$code"
}

# The exit code of a child, once it has ended: a signal ends the wait, not the child.
ended() {
  while kill -0 "$1" 2>/dev/null; do wait "$1" || :; done
  wait "$1"
}

# SIGTERM. The agent would cancel its job, so it is not told before it has none. Between the arrival of a job and the
# start of its worker, and between two jobs, there is a moment without a worker: it must be missing three times.
stop() {
  stopping=yes
  if [ -n "$registering" ]; then kill -TERM "$registering" 2>/dev/null || :; fi
  if [ -z "$listener" ] || [ -n "$stopped" ]; then return 0; fi
  local free=0
  while [ "$free" -lt 3 ] && kill -0 "$listener" 2>/dev/null; do
    if works; then free=0; else free=$((free + 1)); fi
    sleep 0.4
  done
  stopped=yes
  kill -TERM "$listener" 2>/dev/null || :
}

# Whether a job runs.
works() {
  local file name
  for file in /proc/[0-9]*/comm; do
    { read -r name <"$file"; } 2>/dev/null || continue
    [ "$name" != Agent.Worker ] || return 0
  done
  return 1
}

# The agent ends and leaves a process behind that swaps its folders, then renames its log to tell how that went.
finish_update() {
  local left=300 outcome=''
  while [ "$left" -gt 0 ] && [ -z "$stopping" ]; do
    outcome=$(compgen -G '_diag/SelfUpdate-*.log.*' || :)
    [ -z "$outcome" ] || break
    left=$((left - 1))
    sleep 0.2
  done
  [ -z "$stopping" ] || exit 0
  case $outcome in
    '') fail 1 'the update of the agent did not end within a minute' ;;
    *.failed*) cat _diag/SelfUpdate-*.log.failed >&2 && fail 1 'the update of the agent failed' ;;
  esac
}

# Possible only while the token can be read still, from a file that is mounted read-only. The operator removes the
# registrations of its agents itself.
deregister() {
  [ -r "$AZP_TOKEN_FILE" ] || return 0
  VSTS_AGENT_INPUT_TOKEN=$(tr -d '\r\n' <"$AZP_TOKEN_FILE") timeout 30 ./config.sh remove --unattended --auth PAT ||
    warn 'the registration stays'
}

main "$@"

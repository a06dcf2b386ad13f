#!/usr/bin/env bash
# The start of the container: makes ready, serves, and keeps serving. Each step says in one line how long it took and how it
# ended; none is left out without a line, and each has a limit. It may be started again at any time.
#
#   start.sh [serve OPTIONS...]   the app, supervised: a crash restarts it, not the pod
#   start.sh COMMAND ...          any other command of run.sh, such as `restore` or `accounts`
#
# MODE=serverless               handles RunPod's serverless jobs instead of serving the page
# SEEDVR_VOLUME                 where everything worth keeping lies (/workspace)
# SEEDVR_PORT                   port of the page (7860)
# SEEDVR_HOOKS                  folder of pre_start.sh and post_start.sh (/)
# SEEDVR_HOOK_LIMIT_S, SEEDVR_START_LIMIT_S, SEEDVR_STOP_LIMIT_S   seconds for each of them, until the page answers, to stop
set -uo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON="$ROOT/.venv/bin/python"
MODE=${MODE:-pod}
VOLUME=${SEEDVR_VOLUME:-/workspace}
HOOKS=${SEEDVR_HOOKS:-/}
HOOK_LIMIT_S=${SEEDVR_HOOK_LIMIT_S:-300}
START_LIMIT_S=${SEEDVR_START_LIMIT_S:-120}
STOP_LIMIT_S=${SEEDVR_STOP_LIMIT_S:-8}
STEADY_S=60         # an app that lived that long has not failed at its start, so the next pause is short again
LONGEST_PAUSE_S=30
USER_ERROR=2        # exit code of the app for a mistake in its settings, which no restart mends
export SEEDVR_PORT=${SEEDVR_PORT:-7860}

say() { printf 'start: %s\n' "$*"; }

now_ms() { local t=${EPOCHREALTIME/[.,]/}; printf '%s' "$((t / 1000))"; }

seconds_since() { # MS: with one decimal
    local passed=$(($(now_ms) - $1))
    printf '%d.%d s' "$((passed / 1000))" "$((passed % 1000 / 100))"
}

step() { # NAME FUNCTION: runs it here and tells its last word; returns its code
    local name=$1 begin code=0
    shift
    begin=$(now_ms) RESULT=""
    "$@" || code=$?
    if [ "$code" = 0 ]; then say "$name: ${RESULT:-ok} ($(seconds_since "$begin"))"
    else say "$name: FAILED, ${RESULT:-exit code $code} ($(seconds_since "$begin"))"; fi
    return "$code"
}

# --- the steps -------------------------------------------------------------------------------------------------------

use_volume() {
    export SEEDVR_DATA=${SEEDVR_DATA:-$VOLUME/seedvr}
    export HF_HOME=${HF_HOME:-$VOLUME/huggingface}
    export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$VOLUME/cache/triton}
    export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$VOLUME/cache/inductor}
    export CUDA_CACHE_PATH=${CUDA_CACHE_PATH:-$VOLUME/cache/cuda}
    local folder probe
    # A network volume that hangs would hold everything up for ever.
    for folder in "${HOME:-/tmp}" "$SEEDVR_DATA" "$HF_HOME" "$TRITON_CACHE_DIR" "$TORCHINDUCTOR_CACHE_DIR" "$CUDA_CACHE_PATH"; do
        probe="$folder/.start-$$"
        # shellcheck disable=SC2016 # expanded by the inner shell
        if ! timeout 20 bash -c 'mkdir -p -- "$1" && : >"$2" && rm -f -- "$2"' _ "$folder" "$probe" 2>/dev/null; then
            RESULT="$folder cannot be written. Attach a volume at $VOLUME that this user ($(id -u)) may write to, or name another in SEEDVR_VOLUME."
            return 1
        fi
    done
    RESULT="data in $SEEDVR_DATA, models in $HF_HOME"
}

check_environment() {
    if ! RESULT=$(timeout 30 "$PYTHON" -c 'from importlib.metadata import version
print("torch", version("torch"), "gradio", version("gradio"))' 2>&1); then
        RESULT="the packages in $ROOT/.venv do not import. Build the image anew. ${RESULT##*$'\n'}"
        return 1
    fi
}

name_card() {
    if ! command -v nvidia-smi >/dev/null 2>&1; then RESULT="none, so the CPU works with the small model"; return 0; fi
    if ! RESULT=$(timeout 20 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1); then
        RESULT="nvidia-smi does not answer (${RESULT##*$'\n'}), so the CPU works with the small model. Choose another machine."
        return 1
    fi
    RESULT=${RESULT//$'\n'/; }
}

give_share_helper() { # Gradio looks for it below HF_HOME, which lies on the volume
    local baked helper target
    for baked in "$ROOT"/share/gradio/frpc/*; do
        [ -f "$baked" ] || continue
        helper=${baked##*/} target="$HF_HOME/gradio/frpc/${baked##*/}"
        if timeout 20 cmp -s -- "$baked" "$target"; then RESULT="$helper is there"; return 0; fi
        # Renamed into place: a start that is cut short leaves no half file under that name.
        # shellcheck disable=SC2016
        timeout 60 bash -c 'mkdir -p -- "${2%/*}" && cp -- "$1" "$2.$$" && chmod 755 "$2.$$" && mv -f -- "$2.$$" "$2"' \
            _ "$baked" "$target" || { RESULT="$target cannot be written; share links will not work"; return 1; }
        RESULT="$helper installed"
        return 0
    done
    RESULT="not in this image; a share link downloads it"
}

start_sshd() {
    if [ -z "${PUBLIC_KEY:-}" ]; then RESULT="not asked for (PUBLIC_KEY is empty)"; return 0; fi
    if ! command -v sshd >/dev/null 2>&1; then RESULT="there is no sshd in this image"; return 1; fi
    if [ "$(id -u)" != 0 ]; then RESULT="only root can start it; run the container as root"; return 1; fi
    if ! { mkdir -p /root/.ssh /run/sshd && chmod 700 /root/.ssh && touch /root/.ssh/authorized_keys \
        && chmod 600 /root/.ssh/authorized_keys; }; then RESULT="/root/.ssh cannot be written"; return 1; fi
    grep -qxF -- "$PUBLIC_KEY" /root/.ssh/authorized_keys || printf '%s\n' "$PUBLIC_KEY" >>/root/.ssh/authorized_keys
    timeout 30 ssh-keygen -A >/dev/null 2>&1 || { RESULT="ssh-keygen made no host keys"; return 1; }
    if pgrep -x sshd >/dev/null 2>&1; then RESULT="runs already"; return 0; fi
    timeout 20 "$(command -v sshd)" || { RESULT="it does not start"; return 1; }
    local port=RUNPOD_TCP_PORT_22
    RESULT="ok${RUNPOD_PUBLIC_IP:+, ssh root@$RUNPOD_PUBLIC_IP -p ${!port:-22}}"
}

run_hook() { # NAME
    local hook="${HOOKS%/}/$1"
    if [ ! -f "$hook" ]; then RESULT="there is none"; return 0; fi
    local code=0
    timeout --kill-after=5 "$HOOK_LIMIT_S" bash "$hook" </dev/null || code=$?
    [ "$code" != 124 ] && [ "$code" != 137 ] || RESULT="stopped after $HOOK_LIMIT_S s"
    [ "$code" = 0 ] || RESULT="${RESULT:-exit code $code}; the start goes on"
    return "$code"
}

only_one() { # a second supervisor over the same data would fight for the port
    exec 9>"$SEEDVR_DATA/supervisor.lock" || { RESULT="$SEEDVR_DATA/supervisor.lock cannot be written"; return 1; }
    if command -v flock >/dev/null 2>&1 && ! flock -n 9; then
        RESULT="another start.sh serves this data folder already"
        return 1
    fi
}

# --- supervision -----------------------------------------------------------------------------------------------------

APP_PID="" STOPPING="" HOOK_PID=""

stop() { # SIGNAL: hand it on; the loop below waits for the end
    STOPPING=$1
    say "$1 received, stopping"
    [ -z "$APP_PID" ] || kill -TERM "$APP_PID" 2>/dev/null
    [ -z "$HOOK_PID" ] || kill -TERM "$HOOK_PID" 2>/dev/null
}

is_running() { kill -0 "$APP_PID" 2>/dev/null; }

nap() { # SECONDS: a pause that a signal ends
    sleep "$1" 9>&- &
    wait "$!"
}

wait_until_served() { # until the page answers, the app ends, a signal comes, or the time is over
    local deadline=$((SECONDS + START_LIMIT_S))
    while [ -z "$STOPPING" ]; do
        is_running || { RESULT="it ended before it answered"; return 1; }
        if timeout 10 "$PYTHON" "$ROOT/docker/health.py" 9>&-; then
            RESULT="serving on port $SEEDVR_PORT"
            [ "$MODE" = pod ] || RESULT="waiting for jobs"
            return 0
        fi
        if [ "$SECONDS" -ge "$deadline" ]; then
            RESULT="no answer within $START_LIMIT_S s, it is ended"
            kill -KILL "$APP_PID" 2>/dev/null
            return 1
        fi
        nap 0.2
    done
    RESULT="stopped before it answered"
    return 1
}

tell_links() {
    local port="RUNPOD_TCP_PORT_$SEEDVR_PORT"
    if [ -n "${RUNPOD_POD_ID:-}" ]; then say "open https://$RUNPOD_POD_ID-$SEEDVR_PORT.proxy.runpod.net"
    else say "open http://localhost:$SEEDVR_PORT"; fi
    if [ -n "${RUNPOD_PUBLIC_IP:-}" ] && [ -n "${!port:-}" ]; then
        say "directly, without https: http://$RUNPOD_PUBLIC_IP:${!port}"
    fi
}

start_app() { # ARGS...
    if [ "$MODE" = serverless ]; then PYTHONSAFEPATH=1 "$PYTHON" "$ROOT/serverless_app.py" "$@" 9>&- &
    else "$ROOT/run.sh" serve --port "$SEEDVR_PORT" "$@" 9>&- & fi
    APP_PID=$!
}

await_app() { # its exit code in CODE; after a signal it has a limited time
    local limit=""
    while is_running; do
        if [ -n "$STOPPING" ] && [ -z "$limit" ]; then limit=$((SECONDS + STOP_LIMIT_S)); fi
        if [ -n "$limit" ] && [ "$SECONDS" -ge "$limit" ]; then
            say "the app did not stop within $STOP_LIMIT_S s, it is ended"
            kill -KILL "$APP_PID" 2>/dev/null
            break
        fi
        if [ -n "$STOPPING" ]; then nap 0.1; else wait "$APP_PID"; fi
    done
    CODE=0
    wait "$APP_PID" 2>/dev/null || CODE=$?
}

supervise() { # ARGS...
    local pause=0 begin is_first=1
    trap 'stop SIGTERM' TERM
    trap 'stop SIGINT' INT
    while [ -z "$STOPPING" ]; do
        begin=$SECONDS
        start_app "$@"
        if step "app" wait_until_served && [ -n "$is_first" ]; then
            is_first=""
            [ "$MODE" = serverless ] || tell_links
            { step "post_start.sh" run_hook post_start.sh; } 9>&- &
            HOOK_PID=$!
        fi
        await_app
        [ -z "$STOPPING" ] || break
        if [ "$CODE" = "$USER_ERROR" ]; then say "the app cannot start with these settings, see above"; return "$USER_ERROR"; fi
        [ $((SECONDS - begin)) -lt "$STEADY_S" ] || pause=0
        say "the app ended with exit code $CODE; it is started again$([ "$pause" = 0 ] || printf ' in %d s' "$pause")"
        [ "$pause" = 0 ] || nap "$pause"
        pause=$((pause * 2 + 1))
        [ "$pause" -le "$LONGEST_PAUSE_S" ] || pause=$LONGEST_PAUSE_S
    done
    say "stopped"
    return 0
}

# --- what to run -----------------------------------------------------------------------------------------------------

case "${1:-serve}" in
    serve) [ $# = 0 ] || shift ;;
    *)
        step "volume" use_volume >&2 || exit 1
        exec "$ROOT/run.sh" "$@"
        ;;
esac
case $MODE in
    pod | serverless) ;;
    *) say "MODE is '$MODE'; it has to be pod or serverless."; exit "$USER_ERROR" ;;
esac

BEGIN=$(now_ms)
step "volume" use_volume || exit 1
step "alone" only_one || exit 1
step "environment" check_environment || exit 1
step "card" name_card
step "share helper" give_share_helper
step "sshd" start_sshd
step "pre_start.sh" run_hook pre_start.sh
# Weights that were baked into the image are looked into first.
if [ "$MODE" = pod ] && [ -d "$ROOT/baked/weights" ]; then set -- "$@" "engine.weights=$ROOT/baked/weights"; fi
say "ready to start the app after $(seconds_since "$BEGIN")"
supervise "$@"

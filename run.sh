#!/usr/bin/env bash
# The one entry point. It needs Python 3.11 or newer with the venv module and builds everything else in .venv beside itself.
#
#   ./run.sh                     the app on 0.0.0.0:7860
#   ./run.sh test [pytest args]  the whole test suite (bounded in time), with its tools and a browser
#   ./run.sh install [EXTRA]     only builds .venv, or for `serverless` what RunPod's jobs need; the image does both
#   ./run.sh COMMAND ...         the command line: restore, parity, bench, models, ...
#
# SEEDVR_PYTHON   the Python to build .venv with
# SEEDVR_TORCH    what pip installs as torch, e.g. "torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
# SEEDVR_KEEP_TORCH=1   use the torch that this Python has, also where no card can be seen, or stop
# SEEDVR_TEST_LIMITS_S  seconds for the two parts of the test suite, "840 360"
set -euo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
VENV="$ROOT/.venv"
PYTHON="$VENV/bin/python"
BROWSER_TESTS='tests/ui/test_browser*.py'

say() { printf 'run.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# --- environment -----------------------------------------------------------------------------------------------------

is_suitable() { # PYTHON: new enough, and able to make an environment with pip in it
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1
}

has_cuda_torch() { # PYTHON: a torch that is new enough and can use this machine's card
    "$1" -c 'import sys, torch
version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
sys.exit(not (version >= (2, 10) and torch.cuda.is_available()))' </dev/null >/dev/null 2>&1
}

has_torch() { # PYTHON: a torch that is new enough
    "$1" -W ignore -c 'import sys, torch
sys.exit(tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 10))' </dev/null >/dev/null 2>&1
}

has_card() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }

make_venv() {
    local candidate base="" keep=""
    for candidate in ${SEEDVR_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        { command -v "$candidate" >/dev/null 2>&1 && is_suitable "$candidate"; } || continue
        [ -n "$base" ] || base=$candidate
        if [ -n "${SEEDVR_KEEP_TORCH:-}" ]; then
            if has_torch "$candidate"; then base=$candidate keep=--system-site-packages; break; fi
        elif has_card && has_cuda_torch "$candidate"; then base=$candidate keep=--system-site-packages; break; fi
    done
    [ -z "${SEEDVR_KEEP_TORCH:-}" ] || [ -n "$keep" ] \
        || die "SEEDVR_KEEP_TORCH is set, but no Python here has a torch of 2.10 or newer. Use a base that has one."
    [ -n "$base" ] || die "no Python 3.11 or newer with the venv module was found. Install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name it in SEEDVR_PYTHON."
    if [ -n "$keep" ]; then say "making .venv with $base, keeping the torch of this machine"; else say "making .venv with $base"; fi
    "$base" -m venv --clear $keep "$VENV" </dev/null || die "could not make $VENV. Is the disk full, or the folder read-only?"
}

install_torch() {
    "$PYTHON" -W ignore -c 'import torch' >/dev/null 2>&1 </dev/null && return 0
    local wanted="torch==2.13.0" driver
    if has_card; then
        # The CUDA build goes by the driver: from 580 on CUDA 13, before that the last registry build with CUDA 12.8.
        driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1 | cut -d. -f1)
        [ "${driver:-0}" -ge 580 ] || wanted="torch==2.10.0"
    fi
    wanted=${SEEDVR_TORCH:-$wanted}
    say "installing $wanted (once; a large download)"
    # shellcheck disable=SC2086 # several words on purpose: a version and pip options
    pip_install $wanted || die "pip could not install $wanted. Check the network and the disk space, or name another build in SEEDVR_TORCH."
}

pip_install() { "$PYTHON" -m pip install --quiet --quiet --disable-pip-version-check --no-input "$@" </dev/null; }

ensure_environment() { # EXTRA: "base" or an extra of pyproject.toml
    local extra=$1 stamp="$VENV/.seedvr-$1" state
    state="$(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | cksum) $ROOT"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ] && "$PYTHON" -c '' </dev/null >/dev/null 2>&1; then return 0; fi
    "$PYTHON" -m pip --version </dev/null >/dev/null 2>&1 || make_venv
    install_torch
    # The torch that is there is pinned, so pip stops rather than replaces it.
    "$PYTHON" -W ignore -c 'import torch; print(f"torch=={torch.__version__}")' </dev/null >"$VENV/torch-constraint.txt" \
        || die "torch is installed but does not import. Delete $VENV and start again."
    local target="$ROOT"
    [ "$extra" = base ] || target="${ROOT}[$extra]"
    say "installing the other packages ($extra)"
    pip_install -c "$ROOT/constraints.txt" -c "$VENV/torch-constraint.txt" -e "$target" \
        || die "pip could not install the packages. Check the network and the disk space, then start again."
    printf '%s\n' "$state" | tee "$stamp" >"$VENV/.seedvr-base"
}

install_serverless() { # beside .venv, not in it: RunPod's package and Gradio want different versions of the same library
    local wanted="$ROOT/docker/serverless.txt" target="$ROOT/.serverless"
    if [ -f "$target/.stamp" ] && cmp -s "$wanted" "$target/.stamp"; then return 0; fi
    say "installing RunPod's package into .serverless"
    rm -rf -- "$target"
    mkdir -p -- "$target"
    pip_install --no-warn-conflicts --target "$target" -r "$wanted" \
        || die "pip could not install RunPod's package. Check the network and the disk space, then start again."
    cp -- "$wanted" "$target/.stamp"
}

# --- tests -----------------------------------------------------------------------------------------------------------

find_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

ensure_browser() {
    find_browser >/dev/null && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "installing Chromium with apt-get"
        export DEBIAN_FRONTEND=noninteractive
        timeout 300 apt-get -qq update </dev/null >/dev/null 2>&1 || say "apt-get update failed, trying with the lists that are there"
        timeout 600 apt-get -qq install -y --no-install-recommends chromium </dev/null >/dev/null 2>&1 || say "apt-get could not install chromium"
    fi
    find_browser >/dev/null
}

run_part() { # LIMIT REPORT ARGS...: one pytest process group with an end in sight; leaves nothing running behind
    local limit=$1 report=$2 status=0 mark="SEEDVR_TEST_PART=$$-$RANDOM" entry pid
    shift 2
    env "$mark" timeout --kill-after=30 "$limit" "$PYTHON" -m pytest "--junitxml=$report" "$@" </dev/null || status=$?
    if [ "$status" = 124 ] || [ "$status" = 137 ]; then
        say "the tests were stopped after $limit s; the one that hangs is among the last ones named above"
    fi
    # A browser or server that outlived its test would hold the output open, and whoever reads it would wait for ever.
    for entry in /proc/[0-9]*/environ; do
        if grep -qsz -- "^$mark\$" "$entry"; then
            pid=${entry#/proc/}
            kill -KILL "${pid%/environ}" 2>/dev/null || true
        fi
    done
    return "$status"
}

names_a_path() { # ARGS...: is one of them a test file, folder or node id?
    local argument
    for argument in "$@"; do
        case $argument in -*) ;; *) [ ! -e "${argument%%::*}" ] || return 0 ;; esac
    done
    return 1
}

run_tests() {
    local limits reports failed=0 parts
    cd -- "$ROOT"
    command -v timeout >/dev/null 2>&1 || die "the test suite needs the timeout command (coreutils)."
    ensure_environment test
    install_serverless
    read -r -a limits <<<"${SEEDVR_TEST_LIMITS_S:-840 720}"
    reports=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder as it is now
    trap "rm -rf -- '$reports'" EXIT
    export PYTHONUNBUFFERED=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

    if names_a_path "$@"; then
        ensure_browser || say "no Chromium found: tests that need a browser will fail"
        run_part "${limits[0]}" "$reports/chosen.xml" "$@" || exit $?
        return 0
    fi

    parts=(main)
    if ensure_browser; then
        parts+=(browser)
    elif [ "${CI:-}" = true ]; then
        die "no Chromium found and none could be installed; CI runs the browser tests too. Install the package chromium."
    else
        say "no Chromium found: the browser tests are left out. Install it (Debian: apt-get install chromium) to run them."
    fi
    say "tests, part 1: everything but the browser"
    run_part "${limits[0]}" "$reports/main.xml" -n 2 --dist loadfile "--ignore-glob=$BROWSER_TESTS" "$@" || failed=$?
    if [ "${#parts[@]}" = 2 ]; then
        say "tests, part 2: the browser"
        # One xdist worker: a hung browser test then ends that worker, not the report.
        # shellcheck disable=SC2086 # one argument for each file
        run_part "${limits[1]}" "$reports/browser.xml" -n 1 $BROWSER_TESTS "$@" || failed=$?
    fi
    # shellcheck disable=SC2068
    "$PYTHON" "$ROOT/tests/project/summary.py" ${parts[@]/#/$reports/} </dev/null || failed=1
    return "$failed"
}

# --- what to run -----------------------------------------------------------------------------------------------------

case "${1:-}" in
    test)
        shift
        run_tests "$@"
        ;;
    install)
        if [ "${2:-}" = serverless ]; then ensure_environment base && install_serverless; else ensure_environment "${2:-base}"; fi
        ;;
    *)
        ensure_environment "$([ "${1:-}" = bench ] && echo bench || echo base)"
        # The caller's folder stays the working folder, for relative paths, but modules are never taken from it.
        export PYTHONSAFEPATH=1
        [ $# -gt 0 ] || set -- serve
        exec "$PYTHON" -m inference.cli "$@"
        ;;
esac

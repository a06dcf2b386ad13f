#!/bin/bash
# A stand-in for Python in the tests of run.sh: answers the questions that run.sh asks and writes down what it was told.
# STAND_IN_LOG: the file with one line a call. STAND_IN_OLD=1: too old. STAND_IN_CUDA=1: a torch that sees a card is there.
# STAND_IN_FAIL: a call whose text contains this fails. STAND_IN_PYTEST: pass, fail, hang, empty, orphan.
printf '%s\n' "$*" >>"$STAND_IN_LOG"
here=$(dirname "$0")
if [ -n "${STAND_IN_FAIL:-}" ] && [[ "$*" == *"$STAND_IN_FAIL"* ]]; then exit 1; fi
case "$*" in
    *version_info*) [ -z "${STAND_IN_OLD:-}" ] ;;
    *cuda.is_available*) [ -n "${STAND_IN_CUDA:-}" ] ;;
    *"-m venv"*)
        target=${*: -1}
        mkdir -p "$target/bin"
        cp "$0" "$target/bin/python"
        [[ "$*" != *system-site* ]] || touch "$target/bin/torch"
        ;;
    *"import torch; print"*) echo "torch==2.13.0" ;;
    *"import torch") [ -e "$here/torch" ] ;;
    *"pip install"*torch==2.1*) [[ "$*" == *" -e "* ]] || touch "$here/torch" ;;
    *"-m pytest"*)
        for argument in "$@"; do case $argument in --junitxml=*) report=${argument#--junitxml=} ;; esac; done
        case "${STAND_IN_PYTEST:-pass}" in
            hang) sleep 60 ;;
            orphan) setsid sleep 4321 >/dev/null 2>&1 & ;;
        esac
        tests=2 failures=0
        [ "${STAND_IN_PYTEST:-}" != fail ] || failures=1
        [ "${STAND_IN_PYTEST:-}" != empty ] || tests=0
        echo "<testsuites><testsuite tests='$tests' failures='$failures' errors='0' skipped='0' time='1.5'/></testsuites>" >"$report"
        [ "$failures" = 0 ]
        ;;
    *summary.py*) exec "$STAND_IN_REAL_PYTHON" "$@" ;;
    *"-m inference.cli"*) echo "cli: ${*:3} in $PWD" ;;
esac

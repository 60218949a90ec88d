#!/usr/bin/env bash
# Check the project on a GPU, in at most 8 minutes: bash benchmarks/gpu_check.sh [--device cuda] [--wheels FOLDER] …
# Prints one table, continues after a failed check, and exits with 1 if a check failed. --help lists the options.
#
# Needs torch 2.11 to 2.15 with CUDA, its torchvision and Triton, and the packages of requirements/runtime.txt; for the
# export also those of requirements/deploy.txt (without them, it is reported as skipped). Where pip reaches no index,
# --wheels names a folder of wheels to use for this call; nothing is installed into the environment.
#
# PYTHON names the interpreter; default: .venv/bin/python, or else python3.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd -P)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=$(command -v python3) || { echo "python3 is missing." >&2; exit 2; }

wheels="" arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        --wheels) [ $# -gt 1 ] || { echo "--wheels needs a folder." >&2; exit 2; }; wheels=$2; shift 2 ;;
        --wheels=*) wheels=${1#*=}; shift ;;
        *) arguments+=("$1"); shift ;;
    esac
done

work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "$wheels" ]; then
    found=("$wheels"/*.whl)
    [ -e "${found[0]}" ] || { echo "--wheels: there are no .whl files in $wheels." >&2; exit 2; }
    "$python" -m pip install --quiet --no-index --no-deps --target "$work/packages" "${found[@]}" || exit 2
    PYTHONPATH="$PYTHONPATH:$work/packages"
fi
"$python" "$root/benchmarks/gpu_check.py" --work "$work/runs" ${arguments[@]+"${arguments[@]}"}

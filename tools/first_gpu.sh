#!/bin/sh
# One stage of the first hour on a GPU, on a machine that has only Python, torch, Triton and NumPy:
#
#     tools/first_gpu.sh check|profile|tune|serve OUT [--toy] [--kernels FILE]
#
# Installs from the wheels beside it (`make gpu-wheels`; .wheels/3.12, or the folder that WHEELS
# names) into an environment of its own (.venv-gpu, or FIRST_GPU_ENV), which also sees whatever the
# Python that PYTHON names sees. Needs no network, no git, no make and writes results into OUT.
set -eu
[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-python3}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
wheels=${WHEELS:-$root/.wheels/$version}
env=${FIRST_GPU_ENV:-$root/.venv-gpu}

ls "$wheels"/*.whl >/dev/null 2>&1 || {
    echo "first_gpu: no wheels in $wheels: lay them there by 'make gpu-wheels PY=$version'," \
        "or name their folder with WHEELS" >&2
    exit 2
}
"$python" -c 'import torch, triton, numpy' || {
    echo "first_gpu: $python has no torch, triton and numpy: name one that has with PYTHON" >&2
    exit 2
}
stamp=$(ls "$wheels")
if [ "$stamp" != "$(cat "$env/.wheels" 2>/dev/null)" ]; then
    "$python" -m venv --clear --without-pip "$env"
    # Not --system-site-packages: the Python with torch may be an environment itself.
    "$python" - "$env" <<'END'
import sys, sysconfig
from pathlib import Path

env = Path(sys.argv[1])
(own,) = env.glob("lib/python*/site-packages")
seen = [p for p in dict.fromkeys(sys.path) if p.endswith("-packages")]
(own / "beneath.pth").write_text("".join(f"import site; site.addsitedir({p!r})\n" for p in seen))
END
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
        --ignore-installed --no-compile "$wheels"/*.whl
    printf '%s\n' "$stamp" >"$env/.wheels"
fi

# Whoever has no home, or one that cannot be written to, still has somewhere to keep kernels.
[ -w "${HOME:-/}" ] || export HOME="$env"
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$env/kernels/triton}"
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$env/kernels}"
export BENCH_COMMIT="${BENCH_COMMIT:-$(git -C "$root" describe --always --dirty 2>/dev/null ||
    cat "$wheels/COMMIT" 2>/dev/null || echo unknown)}"
export PYTHONPATH="$root:$root/tests${PYTHONPATH:+:$PYTHONPATH}"
# Peers of benchmarks are run as they were installed, without the packages of ours.
export PEERS_PYTHON="${PEERS_PYTHON:-$("$python" -c 'import sys; print(sys.executable)')}"
mkdir -p "$2"
stage=$1 out=$(CDPATH='' cd -- "$2" && pwd)
shift 2
cd "$root"
exec "$env/bin/python" -m tools.first_gpu "$stage" "$out" "$@"

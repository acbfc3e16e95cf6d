#!/bin/sh
# Makes the programs that the bench `factors` runs, each for the sandbox and for this machine:
#
#     sh sandbox/benches/payloads.sh DIRECTORY
#
#     esbuild.wasm, esbuild      a bundler, written in Go; both of one version
#     squeeze.wasm, squeeze      squeeze.c, from one compiler with the same options
#
# It needs python3 with venv, npm and the network, and does nothing when all four are there.
set -eu

[ $# = 1 ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"

# The newest version that was published for both.
esbuild=0.27.2
ziglang=0.15.1

if [ ! -x esbuild ] || [ ! -f esbuild.wasm ]; then
    mkdir -p npm
    npm install --prefix npm --no-fund --no-audit --silent "esbuild@$esbuild" "@esbuild/wasi-preview1@$esbuild"
    cp npm/node_modules/@esbuild/wasi-preview1/esbuild.wasm esbuild.wasm
    cp npm/node_modules/@esbuild/linux-*/bin/esbuild esbuild
fi

if [ ! -x squeeze ] || [ ! -f squeeze.wasm ] || [ "$here/squeeze.c" -nt squeeze.wasm ]; then
    [ -x python/bin/python ] || python3 -m venv python
    python/bin/python -m pip install --quiet "ziglang==$ziglang"
    python/bin/python -m ziglang cc -O2 -o squeeze "$here/squeeze.c"
    python/bin/python -m ziglang cc -O2 -target wasm32-wasi -o squeeze.wasm "$here/squeeze.c"
fi

#!/usr/bin/env bash
# The cargo feature `cust` on a machine without a CUDA toolkit or GPU: cust links the emulator as its libcuda, and what
# drivers have in common (tests/driver) is shown on it. Lints come along, because no other step builds the feature.
set -euo pipefail
cd "$(dirname "$0")/.."

# The library without the feature: it does not depend on itself. Fresh after `cargo test`.
cargo build --quiet --profile test --example cuda

# What a toolkit is to cust on Linux: a folder with the library in lib64. Links, so that what cust links is what is built.
export CUDA_LIBRARY_PATH="$PWD/target/cuda/cust"
mkdir -p "$CUDA_LIBRARY_PATH/lib64"
for name in libcuda.so libcuda.so.1; do
    ln -sfn "$PWD/target/debug/examples/libcuda.so" "$CUDA_LIBRARY_PATH/lib64/$name"
done
export LD_LIBRARY_PATH="$CUDA_LIBRARY_PATH/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

cargo clippy --quiet --features cust --lib --test driver -- -D warnings
# Without optimisation: the kernels run in the library, which has it.
cargo test --quiet --profile dev --features cust --test driver cust::

#!/usr/bin/env bash
# RUSTC_WORKSPACE_WRAPPER: the compiler with libFuzzer's coverage in the project's own crates alone,
# so that the dependencies of an ordinary build serve here too, and stable Rust will do.
set -euo pipefail
case " $* " in *" --crate-type proc-macro "* | *" --crate-name build_script_"*) exec "$@" ;; esac
exec "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions=yes

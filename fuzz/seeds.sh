#!/bin/sh
# Writes what fuzzing starts from: each kernel of the test programs as a module of its own (corpus/load, corpus/launch),
# and the words of the language (ptx.dict). Long kernels are left out: the fuzzer would spend its time on their bytes.
set -e
cd "$(dirname "$0")"
mkdir -p corpus/load corpus/launch
for file in ../tests/emulator/*.ptx; do
    awk -v name="corpus/launch/$(basename "$file" .ptx)" '
        /\.visible \.entry/ { if (count++) save(); text = head }
        { if (count) text = text $0 "\n"; else head = head $0 "\n" }
        END { if (count) save() }
        function save() { if (length(text) <= 12000) printf "%s", text > (name "-" count ".ptx") }
    ' "$file"
done
cp corpus/launch/*.ptx corpus/load/
cat ../tests/emulator/*.ptx | tr -c 'A-Za-z0-9._:%\n' '\n' | grep -E '^[.%A-Za-z][A-Za-z0-9._:]{1,23}$' | grep -v '^\$' | sort -u \
    | sed 's/.*/"&"/' > ptx.dict

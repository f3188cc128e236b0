#!/bin/sh
# Compiles ("$@") and keeps what ptxas says of registers, spills and shared memory in <object>.ptxas. All else that the
# compiler says goes where it always went.
object= previous=
for argument in "$@"; do
    [ "$previous" = -o ] && object=$argument
    previous=$argument
done
"$@" 2>"$object.stderr"
code=$?
info='gmem$|Compiling entry function|Function properties|stack frame|Used [0-9]+ registers|Compile time'
grep -E "$info" "$object.stderr" >"$object.ptxas"
grep -vE "$info" "$object.stderr" >&2
rm -f "$object.stderr"
exit $code

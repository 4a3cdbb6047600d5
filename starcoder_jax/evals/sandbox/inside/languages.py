"""How a program of each language is compiled and run, so that it shows that it reached its end.

A program that exits early, before its tests did, exits with 0 like one that passes. So a word that
only the sandbox knows, a new one for each program, waits on standard input. What is put around the
program takes it from there before the program runs and prints it when the program ended. (Python
programs run in a fork of the worker, see `sample`.)
"""

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        command: its arguments; empty: the Python program, in a fork of this process.
        compiling: has the compiler's time limit and reads nothing.
        reserves: takes addresses by the gigabyte without using them: what it may write is
            limited, not what it may reserve.
    """

    command: tuple[str, ...]
    compiling: bool = False
    reserves: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """The files to write into the working folder, and what to run there, in order."""

    files: Mapping[str, str]
    steps: tuple[Step, ...]


def plan(language: str, source: str, tools: Mapping[str, str], memory: int) -> Plan:
    """What to do with a program.

    Args:
        language: one of `LANGUAGES`.
        source: a whole program.
        tools: paths by name.
        memory: bytes a process may use.
    """
    return LANGUAGES[language](source, tools, memory >> 20)


def _python(source: str, tools: Mapping[str, str], megabytes: int) -> Plan:
    return Plan({"main.py": source}, (Step(()),))


_END_OF_JAVASCRIPT = """\
'use strict';
const {readFileSync, writeSync} = require('fs');
const word = readFileSync(0);
const {exit} = process;
let early = false;
process.exit = (code) => { early = true; exit(code); };
process.on('exit', (code) => { if (!early && !code) writeSync(2, word); });
"""


def _javascript(source: str, tools: Mapping[str, str], megabytes: int) -> Plan:
    heap = f"--max-old-space-size={megabytes // 2}"
    command = (tools["node"], heap, "--require", "./sandbox_end.js", "main.js")
    files = {"main.js": source, "sandbox_end.js": _END_OF_JAVASCRIPT}
    return Plan(files, (Step(command, reserves=True),))


_END_OF_JAVA = """\
import java.io.*;
import java.lang.reflect.*;
class SandboxEnd {
  public static void main(String[] names) throws Throwable {
    byte[] word = System.in.readAllBytes();
    Method main = Class.forName(names[0]).getDeclaredMethod("main", String[].class);
    main.setAccessible(true);
    try {
      main.invoke(null, (Object) new String[0]);
    } catch (InvocationTargetException error) {
      throw error.getCause();
    }
    new FileOutputStream(FileDescriptor.err).write(word);
  }
}
"""
# The one class of the library of this name that MultiPL-E's translations use.
_JAVA_PAIR = """\
package org.javatuples;
import java.util.Objects;
public final class Pair<A, B> {
  private final A first;
  private final B second;
  public Pair(A first, B second) { this.first = first; this.second = second; }
  public static <A, B> Pair<A, B> with(A first, B second) { return new Pair<>(first, second); }
  public A getValue0() { return first; }
  public B getValue1() { return second; }
  public <C> Pair<C, B> setAt0(C value) { return new Pair<>(value, second); }
  public <C> Pair<A, C> setAt1(C value) { return new Pair<>(first, value); }
  @Override public boolean equals(Object other) {
    return other instanceof Pair<?, ?> pair
        && Objects.equals(first, pair.first) && Objects.equals(second, pair.second);
  }
  @Override public int hashCode() { return Objects.hash(first, second); }
  @Override public String toString() { return "[" + first + ", " + second + "]"; }
}
"""
_JAVA_CLASS = re.compile(r"^[ \t]*(public\s+)?(?:(?:final|abstract)\s+)?class\s+(\w+)", re.M)
_JAVA_MAIN = re.compile(r"\bstatic\s+void\s+main\s*\(")


def _java(source: str, tools: Mapping[str, str], megabytes: int) -> Plan:
    main = _JAVA_MAIN.search(source)
    before = [*_JAVA_CLASS.finditer(source, 0, main.start() if main else len(source))]
    public = [match[2] for match in _JAVA_CLASS.finditer(source) if match[1]]
    file = f"{public[0] if public else 'Main'}.java"
    files = {file: source, "SandboxEnd.java": _END_OF_JAVA}
    if "org.javatuples" in source:
        files["org/javatuples/Pair.java"] = _JAVA_PAIR
    # Programs are short: what they cost is the start of the machine.
    quick = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", f"-Xmx{megabytes // 2}m")
    small = ("-XX:ReservedCodeCacheSize=64m", "-XX:CompressedClassSpaceSize=128m")
    options = (*quick, *small, "-XX:ActiveProcessorCount=2", "-XX:-UsePerfData")
    compiler = (tools["javac"], *(f"-J{option}" for option in options), "-proc:none", "-nowarn")
    machine = (tools["java"], *options, "-ea", "-cp", "classes", "SandboxEnd")
    run = (*machine, before[-1][2] if before else "Main")
    compiling = Step((*compiler, "-d", "classes", *files), compiling=True, reserves=True)
    return Plan(files, (compiling, Step(run, reserves=True)))


# Takes the place of `main` when it is linked.
_END_OF_MAIN = """\
#include <unistd.h>
#ifdef __cplusplus
extern "C" {
#endif
int __real_main(int, char **, char **);
int __wrap_main(int count, char **arguments, char **environment) {
  char word[64];
  ssize_t length = read(0, word, sizeof word);
  int status = __real_main(count, arguments, environment);
  if (status == 0 && length > 0 && write(2, word, length) != length) status = 1;
  return status;
}
#ifdef __cplusplus
}
#endif
"""


def _cpp(source: str, tools: Mapping[str, str], megabytes: int) -> Plan:
    files = {"main.cpp": source, "sandbox_end.cpp": _END_OF_MAIN}
    command = (tools["g++"], "-std=c++17", "-w", "-Wl,--wrap=main", "-o", "main", *files)
    return Plan(files, (Step((*command, "-pthread"), compiling=True), Step(("./main",))))


def _rust(source: str, tools: Mapping[str, str], megabytes: int) -> Plan:
    files = {"main.rs": source, "sandbox_end.c": _END_OF_MAIN}
    end = Step((tools["cc"], "-c", "sandbox_end.c"), compiling=True)
    link = ("-Clink-arg=sandbox_end.o", "-Clink-arg=-Wl,--wrap=main")
    command = (tools["rustc"], "--edition=2021", "--cap-lints=allow", *link, "-o", "main")
    compiling = Step((*command, "main.rs"), compiling=True, reserves=True)
    return Plan(files, (end, compiling, Step(("./main",))))


def _bash(source: str, tools: Mapping[str, str], megabytes: int) -> Plan:
    # On the first and last lines, so that line numbers stay as they are.
    start = "exec 9<&0 </dev/null;"
    read_word = "builtin read -r word <&9 || builtin :"
    end = f'\nstatus=$?; {read_word}; builtin printf %s "$word" >&2; builtin exit $status\n'
    command = (tools["bash"], "--norc", "--noprofile", "main.sh")
    return Plan({"main.sh": start + source + end}, (Step(command),))


LANGUAGES = {
    "python": _python,
    "javascript": _javascript,
    "java": _java,
    "cpp": _cpp,
    "bash": _bash,
    "rust": _rust,
}

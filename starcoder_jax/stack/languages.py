"""Which languages the StarCoder models were trained on; names are Linguist's, as of The Stack.

| set | what it has |
|---|---|
| `starcoder` | StarCoder's 86 languages (arXiv:2305.06161), and its two data formats |
| `starcoder2_17` | StarCoder2-3B's and -7B's 17 languages, and those of documentation |
| `starcoder2_619` | StarCoder2-15B's (arXiv:2402.19173) |

Of the last, the published labels of The Stack v2 name the 605 that are here; which 14 more the
paper counts is not published. Nor are the names of the configuration languages beside the 17.
"""

from collections.abc import Iterable, Mapping

_STARCODER = (
    *("ANTLR", "Ada", "Agda", "Alloy", "AppleScript", "Assembly", "Augeas", "Awk", "Batchfile"),
    *("Bluespec", "C", "C#", "C++", "CMake", "CSS", "Clojure", "CoffeeScript", "Common Lisp"),
    *("Cuda", "Dart", "Dockerfile", "Elixir", "Elm", "Emacs Lisp", "Erlang", "F#", "FORTRAN"),
    *("GLSL", "Go", "Groovy", "HTML", "Haskell", "Idris", "Isabelle", "Java", "Java Server Pages"),
    *("JavaScript", "Julia", "Kotlin", "Lean", "Literate Agda", "Literate CoffeeScript"),
    *("Literate Haskell", "Lua", "Makefile", "Maple", "Markdown", "Mathematica", "Matlab", "OCaml"),
    *("PHP", "Pascal", "Perl", "PowerShell", "Prolog", "Protocol Buffer", "Python", "R"),
    *("RMarkdown", "Racket", "Ruby", "Rust", "SAS", "SPARQL", "SQL", "Scala", "Scheme", "Shell"),
    *("Smalltalk", "Solidity", "Stan", "Standard ML", "Stata", "SystemVerilog", "Tcl", "Tcsh"),
    *("TeX", "Thrift", "TypeScript", "VHDL", "Verilog", "Visual Basic", "XSLT", "Yacc", "Zig"),
    "reStructuredText",
)
_STARCODER_DATA = ("JSON", "YAML")
_STARCODER2_17 = (
    *("C", "C#", "C++", "Go", "Java", "JavaScript", "Kotlin", "Lua", "PHP", "Python", "R", "Ruby"),
    *("Rust", "SQL", "Shell", "Swift", "TypeScript"),
)
_DOCUMENTATION = (
    *("AsciiDoc", "HTML", "Markdown", "RDoc", "RMarkdown", "Text", "reStructuredText"),
)
_STARCODER2_619 = (
    *("1C Enterprise", "2-Dimensional Array", "4D", "ABAP", "ABAP CDS", "ABNF", "AIDL", "AL"),
    *("AMPL", "ANTLR", "API Blueprint", "APL", "ASL", "ASN.1", "ASP.NET", "ATS", "ActionScript"),
    *("Ada", "Adobe Font Metrics", "Agda", "Alloy", "Alpine Abuild", "Altium Designer"),
    *("AngelScript", "Ant Build System", "Antlers", "ApacheConf", "Apex"),
    *("Apollo Guidance Computer", "AppleScript", "Arc", "AsciiDoc", "Assembly", "Astro"),
    *("Asymptote", "Augeas", "AutoHotkey", "AutoIt", "Avro IDL", "Awk", "BASIC", "Ballerina"),
    *("Batchfile", "Beef", "Befunge", "Berry", "BibTeX", "Bikeshed", "Bison", "BitBake", "Blade"),
    *("BlitzBasic", "BlitzMax", "Bluespec", "Boo", "Brainfuck", "BrighterScript", "Brightscript"),
    *("Browserslist", "C", "C#", "C++", "C-ObjDump", "C2hs Haskell", "CAP CDS", "CIL", "CLIPS"),
    *("CMake", "COBOL", "CSON", "CSS", "CUE", "CWeb", "Cabal Config", "Cadence", "Cairo"),
    *("CameLIGO", "Cap'n Proto", "CartoCSS", "Ceylon", "Chapel", "Charity", "Cirru", "Clarion"),
    *("Clarity", "Classic ASP", "Clean", "Click", "Clojure", "Closure Templates"),
    *("Cloud Firestore Security Rules", "CodeQL", "CoffeeScript", "ColdFusion", "ColdFusion CFC"),
    *("Common Lisp", "Component Pascal", "Cool", "Coq", "Creole", "Crystal", "Csound"),
    *("Csound Document", "Csound Score", "Cuda", "Curry", "Cycript", "Cython", "D", "DM"),
    *("DNS Zone", "Dafny", "Darcs Patch", "Dart", "DataWeave", "Debian Package Control File"),
    *("DenizenScript", "Dhall", "Dockerfile", "Dogescript", "Dylan", "E", "EBNF", "ECL", "ECLiPSe"),
    *("EJS", "EQ", "Eagle", "Earthly", "Easybuild", "Ecere Projects", "EditorConfig"),
    *("Edje Data Collection", "Eiffel", "Elixir", "Elm", "Elvish", "Emacs Lisp", "EmberScript"),
    *("Erlang", "Euphoria", "F#", "F*", "FIGlet Font", "FLUX", "Fancy", "Fantom", "Faust"),
    *("Fennel", "Filebench WML", "Filterscript", "Fluent", "Formatted", "Forth", "Fortran"),
    *("Fortran Free Form", "FreeBasic", "FreeMarker", "Frege", "Futhark", "G-code", "GAML", "GAMS"),
    *("GAP", "GCC Machine Description", "GDB", "GDScript", "GEDCOM", "GLSL", "GN", "GSC"),
    *("Game Maker Language", "Gemini", "Genero", "Genero Forms", "Genie", "Genshi"),
    *("Gentoo Ebuild", "Gentoo Eclass", "Gettext Catalog", "Gherkin", "Git Attributes"),
    *("Git Config", "Git Revision List", "Gleam", "Glyph", "Gnuplot", "Go", "Go Module", "Golo"),
    *("Gosu", "Grace", "Gradle", "Grammatical Framework", "Graph Modeling Language", "GraphQL"),
    *("Graphviz (DOT)", "Groovy", "Groovy Server Pages", "HAProxy", "HCL", "HLSL", "HOCON", "HTML"),
    *("HTML+ECR", "HTML+EEX", "HTML+ERB", "HTML+PHP", "HTML+Razor", "HTTP", "HXML", "Hack", "Haml"),
    *("Handlebars", "Harbour", "Haskell", "Haxe", "HiveQL", "HolyC", "Hy", "HyPhy", "IDL"),
    *("IGOR Pro", "INI", "IRC log", "Idris", "ImageJ Macro", "Inform 7", "Inno Setup", "Io"),
    *("Ioke", "Isabelle", "Isabelle ROOT", "J", "JFlex", "JSON", "JSON with Comments", "JSON5"),
    *("JSONiq", "Janet", "Jasmin", "Java", "Java Server Pages", "JavaScript", "JavaScript+ERB"),
    *("JetBrains MPS", "Jinja", "Jison", "Jison Lex", "Jolie", "Jsonnet", "Julia"),
    *("Jupyter Notebook", "KRL", "Kaitai Struct", "KakouneScript", "KiCad Legacy Layout"),
    *("KiCad Schematic", "Kit", "Kotlin", "Kusto", "LFE", "LLVM", "LOLCODE", "LSL"),
    *("LTspice Symbol", "LabVIEW", "Lark", "Lasso", "Latte", "Lean", "Less", "Lex", "LigoLANG"),
    *("LilyPond", "Limbo", "Linker Script", "Liquid", "Literate Agda", "Literate CoffeeScript"),
    *("Literate Haskell", "LiveScript", "Logos", "Logtalk", "LookML", "LoomScript", "Lua", "M"),
    *("M4", "M4Sugar", "MATLAB", "MAXScript", "MLIR", "MQL4", "MQL5", "MTML", "MUF", "Macaulay2"),
    *("Makefile", "Mako", "Markdown", "Marko", "Mask", "Mathematica", "Maven POM", "Max"),
    *("Mercury", "Meson", "Metal", "Microsoft Developer Studio Project"),
    *("Microsoft Visual Studio Solution", "MiniD", "MiniYAML", "Mint", "Mirah", "Modelica"),
    *("Modula-2", "Modula-3", "Module Management System", "Monkey", "Monkey C", "Moocode"),
    *("MoonScript", "Motoko", "Motorola 68K Assembly", "Move", "Muse", "Mustache", "Myghty"),
    *("NASL", "NCL", "NEON", "NL", "NPM Config", "NSIS", "NWScript", "Nasal", "Nearley", "Nemerle"),
    *("NetLinx", "NetLinx+ERB", "NetLogo", "NewLisp", "Nextflow", "Nginx", "Nim", "Ninja", "Nit"),
    *("Nix", "Nu", "NumPy", "OCaml", "ObjDump", "Object Data Instance Notation", "ObjectScript"),
    *("Objective-C", "Objective-C++", "Objective-J", "Odin", "Omgrofl", "Opa", "Opal"),
    *("Open Policy Agent", "OpenCL", "OpenEdge ABL", "OpenQASM", "OpenRC runscript", "OpenSCAD"),
    *("OpenStep Property List", "OpenType Feature File", "Org", "Ox", "Oxygene", "Oz", "P4"),
    *("PEG.js", "PHP", "PLSQL", "PLpgSQL", "POV-Ray SDL", "Pan", "Papyrus", "Parrot"),
    *("Parrot Assembly", "Parrot Internal Representation", "Pascal", "Pawn", "Pep8", "Perl", "Pic"),
    *("PicoLisp", "PigLatin", "Pike", "PlantUML", "Pod", "Pod 6", "PogoScript", "Pony", "Portugol"),
    *("PostCSS", "PowerBuilder", "PowerShell", "Prisma", "Processing", "Procfile", "Proguard"),
    *("Prolog", "Promela", "Propeller Spin", "Protocol Buffer", "Protocol Buffer Text Format"),
    *("Pug", "Puppet", "Pure Data", "PureBasic", "PureScript", "Python", "Python traceback", "Q#"),
    *("QML", "QMake", "Qt Script", "Quake", "R", "RAML", "RDoc", "REALbasic", "REXX", "RMarkdown"),
    *("RPC", "RPGLE", "RPM Spec", "RUNOFF", "Racket", "Ragel", "Raku", "Rascal", "Raw token data"),
    *("Readline Config", "Reason", "ReasonLIGO", "Rebol", "Record Jar", "Red", "Redcode"),
    *("Redirect Rules", "Regular Expression", "Ren'Py", "RenderScript", "Ring", "Riot"),
    *("RobotFramework", "Roff", "Roff Manpage", "Rouge", "RouterOS Script", "Ruby", "Rust", "SAS"),
    *("SCSS", "SELinux Policy", "SMT", "SPARQL", "SQF", "SQL", "SQLPL", "SRecode Template"),
    *("SSH Config", "STAR", "STL", "STON", "Sage", "SaltStack", "Sass", "Scala", "Scaml", "Scheme"),
    *("Scilab", "Self", "ShaderLab", "Shell", "ShellCheck Config", "ShellSession", "Shen", "Sieve"),
    *("Singularity", "Slash", "Slice", "Slim", "Smali", "Smalltalk", "Smarty", "Solidity", "Soong"),
    *("SourcePawn", "Spline Font Database", "Squirrel", "Stan", "Standard ML", "Starlark", "Stata"),
    *("StringTemplate", "Stylus", "SugarSS", "SuperCollider", "Svelte", "Swift", "SystemVerilog"),
    *("TI Program", "TLA", "TOML", "TSQL", "TSX", "TXL", "Talon", "Tcl", "Tcsh", "TeX", "Tea"),
    *("Terra", "Texinfo", "Text", "TextMate Properties", "Textile", "Thrift", "Turing", "Twig"),
    *("Type Language", "TypeScript", "Unified Parallel C", "Unix Assembly", "Uno", "UnrealScript"),
    *("UrWeb", "V", "VBA", "VBScript", "VCL", "VHDL", "Vala", "Valve Data Format"),
    *("Velocity Template Language", "Verilog", "Vim Help File", "Vim Script", "Vim Snippet"),
    *("Visual Basic .NET", "Volt", "Vue", "Vyper", "Web Ontology Language", "WebAssembly"),
    *("WebIDL", "Wget Config", "Whiley", "Wikitext", "Win32 Message File", "Witcher Script"),
    *("Wollok", "Wren", "X Font Directory Index", "X PixMap", "X10", "XC", "XCompose", "XML"),
    *("XPages", "XProc", "XQuery", "XS", "XSLT", "Xojo", "Xonsh", "Xtend", "YAML", "YANG", "YARA"),
    *("YASnippet", "Yacc", "Yul", "ZAP", "ZIL", "Zeek", "ZenScript", "Zephir", "Zig", "Zimpl"),
    *("cURL Config", "dircolors", "eC", "fish", "hoon", "jq", "kvlang", "mcfunction", "mupad"),
    *("nanorc", "ooc", "q", "reStructuredText", "robots.txt", "sed", "wdl", "wisp", "xBase"),
)

# What Linguist has renamed since, or The Stack v1 called otherwise: both names are in the sets.
_RENAMED = {
    "Coq": "Rocq Prover",
    "FORTRAN": "Fortran",
    "FreeBasic": "FreeBASIC",
    "Genero": "Genero 4gl",
    "Genero Forms": "Genero per",
    "Mathematica": "Wolfram Language",
    "Matlab": "MATLAB",
    "SaltStack": "Salt",
    "Vim Script": "Vim script",
    "Visual Basic": "Visual Basic .NET",
    "robots.txt": "Robots Exclusion Rules",
    "wdl": "WDL",
}


def _named(*groups: Iterable[str]) -> frozenset[str]:
    names = {name for group in groups for name in group}
    return frozenset(names | {_RENAMED[name] for name in names & set(_RENAMED)})


LANGUAGE_SETS: Mapping[str, frozenset[str]] = {
    "starcoder": _named(_STARCODER, _STARCODER_DATA),
    "starcoder2_17": _named(_STARCODER2_17, _DOCUMENTATION),
    "starcoder2_619": _named(_STARCODER2_619),
}

# Bytes of a language at most, as StarCoder2-15B's corpus was cut.
STARCODER2_CAPS: Mapping[str, int] = {
    "Java": 200 * 10**9,
    "JavaScript": 200 * 10**9,
    "HTML": 100 * 10**9,
    "JSON": 8 * 10**9,
    "XML": 8 * 10**9,
    "YAML": 8 * 10**9,
}


def expanded(names: Iterable[str]) -> frozenset[str]:
    """Languages, and for names of `LANGUAGE_SETS` the languages in those."""
    return frozenset().union(*(LANGUAGE_SETS.get(name, {name}) for name in names))

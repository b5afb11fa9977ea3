//! What the cursors and the syntax reader promise, on a language made up for the purpose.

use super::*;

fn codes(problems: &Problems) -> Vec<String> {
    problems.iter().map(|p| p.code().rsplit("::").next().unwrap_or_default().to_owned()).collect()
}

fn helps(problems: &Problems) -> String {
    problems.iter().filter_map(Problem::help_text).collect::<Vec<_>>().join(" | ")
}

fn marked<'t>(text: &'t str, problem: &Problem) -> &'t str {
    let span = problem.first_span().expect("a place");
    &text[span.offset()..span.offset() + span.len()]
}

/// Reads `pot SIZE lid=BOOL cups=N colour=WORD { leaf NAME }`.
fn read(text: &str) -> Result<((), Problems), Problems> {
    let doc = Document::parse("vmprof::tea", "tea.kdl", text)?;
    let found = doc.findings();
    let root = doc.root(&found);
    if let Some(pot) = root.required("pot", "write `pot \"1GiB\"`") {
        let _ = pot.required_arg("its size", "write one").and_then(|v| v.bytes());
        let _ = pot.prop("lid").and_then(|v| v.bool());
        let _ = pot.prop("cups").and_then(|v| v.u64(1..=8));
        let _ = pot.prop("colour").and_then(|v| v.word(&[("green", 1), ("black", 2)]));
        let block = pot.children();
        for leaf in block.all("leaf") {
            let _ = leaf.required_arg("its name", "write one").and_then(|v| v.text());
            leaf.finish();
        }
        block.not_yet(&[("steam", "wait")]);
        block.finish();
        pot.finish();
    }
    root.finish();
    doc.conclude(found, Some(()))
}

#[test]
fn a_right_file_has_no_problems() {
    let (_, warnings) =
        read("/- kdl-version 2\npot \"1GiB\" lid=#true cups=3 colour=green { leaf oolong }\n").unwrap();
    assert!(warnings.is_empty());
}

#[test]
fn each_kind_of_stray_is_reported_with_its_place() {
    for (text, code, place) in [
        ("pot \"1GiB\"\npto 1", "unknown_node", "pto"),
        ("pot \"1GiB\" ldi=#true", "unknown_property", "ldi"),
        ("pot \"1GiB\" 7", "extra_argument", "7"),
        ("pot \"1GiB\" cups=1 cups=2", "duplicate_property", "cups=2"),
        ("pot \"1GiB\"\npot \"2GiB\"", "duplicate_node", "pot"),
        ("pot", "missing_argument", "pot"),
        ("pot 8", "wrong_type", "8"),
        ("pot \"8 GB\"", "bad_size", "\"8 GB\""),
        ("pot \"8\"", "bad_size", "\"8\""),
        ("pot \"1GiB\" cups=9", "out_of_range", "cups=9"),
        ("pot \"1GiB\" cups=-1", "out_of_range", "cups=-1"),
        ("pot \"1GiB\" colour=grene", "unknown_word", "colour=grene"),
        ("pot \"1GiB\" { leaf \"\"; }", "empty_value", "\"\""),
        ("pot \"1GiB\" { leaf a { b; }; }", "unexpected_children", "leaf"),
        ("pot \"1GiB\" { steam; }", "not_supported_yet", "steam"),
        ("pot (wide)\"1GiB\"", "type_annotation", "wide"),
    ] {
        let problems = read(text).unwrap_err();
        assert_eq!(codes(&problems), [code], "{text}");
        assert_eq!(marked(text, problems.iter().next().unwrap()), place, "{text}");
    }
}

#[test]
fn a_near_miss_is_suggested() {
    assert!(helps(&read("pot \"1GiB\" ldi=#true").unwrap_err()).contains("did you mean `lid=`?"));
    assert!(helps(&read("pot \"1GiB\" colour=grene").unwrap_err()).contains("did you mean `green`?"));
    assert!(helps(&read("pto 1\npot \"1GiB\"").unwrap_err()).contains("did you mean `pot`?"));
    assert!(helps(&read("pot \"8GB\"").unwrap_err()).contains("write \"8GiB\""));
}

#[test]
fn a_misspelt_required_node_is_one_problem() {
    let problems = read("pto \"1GiB\"").unwrap_err();
    assert_eq!(codes(&problems), ["unknown_node"]);
    assert_eq!(helps(&problems), "did you mean `pot`?");
    assert_eq!(codes(&read("kettle 1").unwrap_err()), ["unknown_node", "missing_node"]);
}

#[test]
fn bare_sizes_lists_and_keywords_say_what_to_write() {
    for (text, code, help) in [
        ("pot 8GiB", "missing_quotes", "write \"8GiB\""),
        ("pot 0-3,8", "missing_quotes", "write \"0-3,8\""),
        ("pot \"1GiB\" lid=true", "bare_keyword", "KDL 2 writes `#true`"),
        ("// é\npot \"1GiB\" lid=false", "bare_keyword", "KDL 2 writes `#false`"),
        ("pot \"1GiB\" cups=1,2", "missing_quotes", "write \"1,2\""),
        ("pot /dev/pot", "missing_quotes", "write \"/dev/pot\""),
        ("pot /dev/pot // by name", "missing_quotes", "write \"/dev/pot\""),
        ("pot pots/red-1", "missing_quotes", "write \"pots/red-1\""),
        ("pot \"1GiB\" { leaf /leaf; }", "missing_quotes", "write \"/leaf\""),
        ("pot ./pot{ leaf green; }", "missing_quotes", "write \"./pot\""),
        ("pot 8GiB// large", "missing_quotes", "write \"8GiB\""),
        ("pot \"1GiB\" colour=/etc/colour", "missing_quotes", "write \"/etc/colour\""),
    ] {
        let problems = read(text).unwrap_err();
        assert_eq!(codes(&problems), [code], "{text}");
        assert_eq!(helps(&problems), help, "{text}");
    }
}

#[test]
fn a_slip_does_not_hide_the_other_mistakes() {
    let text = "pot 8GiB lid=true colour=grene {\n  leef green\n}\n";
    let problems = read(text).unwrap_err();
    assert_eq!(codes(&problems), ["missing_quotes", "bare_keyword", "unknown_word", "unknown_node"]);
    assert_eq!(problems.to_string(), "tea.kdl: 4 problems");
}

#[test]
fn what_is_not_kdl_is_one_problem_per_place() {
    for text in ["pot {\n a 1\n", "pot \"abc\n", "pot }", "pot a=b=c", "pot lid=\n"] {
        let problems = read(text).unwrap_err();
        assert_eq!(codes(&problems), ["syntax"], "{text}: {problems:?}");
    }
}

#[test]
fn sizes_read_and_print_alike() {
    for (text, bytes) in [("8GiB", 8 << 30), ("4096KiB", 4096 << 10), ("512B", 512), ("2TiB", 2 << 40)] {
        assert_eq!(parse_size(text), Ok(bytes));
        assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
    }
    assert_eq!(format_size(8 << 30), "8GiB");
    assert_eq!(format_size(1536 << 20), "1536MiB");
    assert_eq!(format_size(0), "0B");
    assert!(matches!(parse_size("99999999999TiB"), Err(SizeError::TooLarge(_))));
    assert!(matches!(parse_size("1.5GiB"), Err(SizeError::Number(_))));
    assert!(matches!(parse_size(""), Err(SizeError::Number(_))));
}

#[test]
fn floods_of_anything_are_refused_before_the_parser_drowns() {
    let repeated = |part: &str| part.repeat(8_000 / part.len());
    for part in [
        "{",
        "}",
        "a {",
        "a}",
        "a;}",
        "/*",
        "/* *",
        "\"",
        "a \"",
        "a \"\n",
        "\"\"\"\n",
        "\"\"\"",
        "#\"",
        "##\"\n",
        "(",
        "(a)",
        "(a)\n",
        "=",
        "=\n",
        "a=",
        "a=\n",
        "a=b=",
        "a=1 ",
        "true ",
        "true\n",
        "a true\n",
        "{}",
        "{}\n",
        "a\n{\n}\n",
        "a {\n",
        "}\n",
        "/-",
        "/-\n",
        "\\",
        "\\\n",
        "[",
        "#",
        ";",
        "1 ",
        "1\n",
        "pot 8GiB\n",
        "pot 1,2\n",
        "é",
        "é\n",
        "a/",
        "a/\n",
        "\",",
        "a,\n",
        "//",
        "'",
        "-",
        "-1\n",
        "\"a\"\n",
        "\"\\",
        "a \"b\"c\n",
        "1a\n",
        "a 1a 2b 3c\n",
        "a r\"x\"\n",
        ")\n",
        "a )\n",
        "a (\n",
        "[\n",
        "a ]\n",
    ] {
        let problems = read(&repeated(part)).unwrap_err();
        assert!(!problems.is_empty() && problems.len() <= 101, "{part:?}: {}", problems.len());
    }
    assert_eq!(codes(&read(&"a {".repeat(65)).unwrap_err()), ["too_deep"]);
    assert_eq!(codes(&read(&"\n".repeat(2 << 20)).unwrap_err()), ["too_large"]);
    assert_eq!(codes(&read(&"a".repeat(70_000)).unwrap_err()), ["too_large"]);
    assert_eq!(codes(&read(&format!("/*{}*/", "*".repeat(2000))).unwrap_err()), ["too_large"]);
    assert_eq!(codes(&read("pot \"1GiB\" \0").unwrap_err()), ["forbidden_character"]);
}

#[test]
fn words_that_can_be_nothing_do_not_end_the_process() {
    for part in [
        "a .1\n",
        "a \\b\n",
        "a 0x\n",
        "a 0xg\n",
        "a #x\n",
        "a #tru\n",
        "a 1e\n",
        "a -.5\n",
        "a true\n",
        "a /b\n",
        "a 8GiB\n",
        "a b]\n",
        "a=1\n",
        "a \"\\q\"\n",
        "a {} b\n",
        "a =b\n",
        "a 1=2\n",
    ] {
        let problems = read(&part.repeat(300_000 / part.len())).unwrap_err();
        assert!(!problems.is_empty() && problems.len() <= 101, "{part:?}: {}", problems.len());
    }
}

#[test]
fn what_only_looks_like_a_flood_is_read() {
    let strings = "leaf \"{{{{ }}}} = \\\" // /*\"\nleaf #\"\"{=\"\"#\n".repeat(400);
    let text = format!("/**** /* nested */ {{{{ ****/\npot \"1GiB\" {{\n// {{{{\n{strings}}}\n");
    let (_, warnings) = read(&text).unwrap();
    assert!(warnings.is_empty());
    let many = "leaf \"\"\"\n  {{{ \"quoted\" }}\n  \"\"\"\n".repeat(200);
    assert!(read(&format!("pot \"1GiB\" {{\n{many}}}\n")).is_ok());
}

#[test]
fn past_a_hundred_problems_are_counted() {
    let text = format!("pot \"1GiB\"\n{}", "pto\n".repeat(300));
    let problems = read(&text).unwrap_err();
    assert_eq!((problems.len(), problems.iter().last().unwrap().message()), (101, "and 200 more"));
}

#[test]
fn habits_of_other_languages_are_named() {
    for (text, says) in [
        ("pot \"1GiB\", lid=#true\n", "a comma separates nothing in KDL"),
        ("pot r\"1GiB\"\n", "raw strings have no `r` in KDL 2"),
        (
            "pot 99999999999999999999999999999999999999999999\n",
            "`99999999999999999999999999999999999999999999` is larger than any number",
        ),
        ("pot 8\n", "`pot` takes a size with its unit, and is given the number 8"),
        ("pot \"8 apples\"\n", "`pot` is given no size: `apples` is not a unit of size"),
        ("pot \"1GiB\" colour=grene\n", "`grene` is no word for `colour`"),
    ] {
        let problems = read(text).unwrap_err();
        assert_eq!(problems.iter().next().unwrap().message(), says, "{problems:?}");
    }
}

#[test]
fn telling_kinds_of_file_apart_keeps_the_limits_of_reading() {
    // The parser alone descends once per brace, to the end of the stack.
    let deep = format!("guest g {}", "{ a ".repeat(100_000));
    assert_eq!(first_node(&deep).as_deref(), Some("guest"));
    assert_eq!(first_node("// x\n/- off\nprofile p { memory 8GiB }").as_deref(), Some("profile"));
}

#[test]
fn a_property_for_a_missing_argument_is_one_problem() {
    let found = |text: &str| {
        let document = Document::parse("t", "t.kdl", text).unwrap();
        let findings = document.findings();
        let root = document.root(&findings);
        let node = root.required("cup", "write `cup 4`").unwrap();
        let _ = node.required_arg("how many", "write `cup 4`");
        let _ = node.prop("sugar");
        node.finish();
        root.finish();
        let problems = document.conclude(findings, Some(())).unwrap_err();
        let told = |p: &Problem| format!("{} {}", p.code(), p.help_text().unwrap_or_default());
        problems.iter().map(told).collect::<Vec<_>>()
    };
    assert_eq!(found("cup count=4\n"), ["t::unknown_property write `cup 4`"]);
    assert_eq!(found("cup count=4 of=5\n"), ["t::unknown_property write `cup 4`"]);
    // A misspelt property stands for itself.
    let both = ["t::missing_argument write `cup 4`", "t::unknown_property did you mean `sugar=`?"];
    assert_eq!(found("cup suger=4\n"), both);
}

//! What the layout keeps and what it makes alike.

use proptest::prelude::*;

use super::*;

fn formatted(text: &str) -> String {
    match format("vmprof::tea", "tea.kdl", text) {
        Ok(text) => text,
        Err(problems) => panic!("{text}\n{:?}", problems.iter().collect::<Vec<_>>()),
    }
}

#[test]
fn the_layout_is_canonical() {
    for (text, wanted) in [
        ("a", "a\n"),
        ("", ""),
        ("\n\n\n", ""),
        ("/- kdl-version 2\nprofile x { }", "/- kdl-version 2\nprofile x {}\n"),
        ("/-kdl-version 2\n\n\n\na", "/- kdl-version 2\n\na\n"),
        ("a{b;c 1;}", "a { b; c 1 }\n"),
        ("a {\n b\n\n\n c; d\n\n}\n", "a {\n    b\n\n    c\n    d\n}\n"),
        ("a   k = 1   (ty) 2", "a k=1 (ty)2\n"),
        ("a 1 // why\nb\t// because  \n", "a 1 // why\nb // because\n"),
        ("a { // head\n b }", "a { // head\n    b\n}\n"),
        ("  // one\n// two\n\n// three\na", "// one\n// two\n\n// three\na\n"),
        ("a /* in */ 1 /-2 /-k=3 { b } /- { c }", "a /* in */ 1 /-2 /-k=3 { b } /-{ c }\n"),
        ("a 1 \\ // more\n   2 \\\n 3", "a 1 \\ // more\n    2 \\\n    3\n"),
        ("a; b // both\r\nc\r\n", "a\nb // both\nc\n"),
        ("/- a {\nb\n}\nc", "/- a {\n    b\n}\nc\n"),
        ("a #\"raw \" {\"# \"a {;} // \\\" \"", "a #\"raw \" {\"# \"a {;} // \\\" \"\n"),
        ("a \"\"\"\n   x\n  y {\n  \"\"\" 1", "a \"\"\"\n   x\n  y {\n  \"\"\" 1\n"),
        ("a { b { c 1 }; d }", "a { b { c 1 }; d }\n"),
        ("a { /* x */ b }", "a {\n    /* x */\n    b\n}\n"),
        ("/-\n// not now\na 1", "/-  // not now\n    a 1\n"),
        ("\\// one\n// two", "// one\n// two\n"),
    ] {
        let got = formatted(text);
        assert_eq!(got, wanted, "{text:?}");
        assert_eq!(formatted(&got), got, "again: {text:?}");
    }
}

#[test]
fn braces_stay_on_a_line_while_it_is_short() {
    let text = format!("a {{ {} }}\n", ["bcdefghij 1"; 6].join("; "));
    assert_eq!(formatted(&text), text);
    let long = formatted(&format!("a {{ {} }}\n", ["bcdefghij 1"; 8].join("; ")));
    assert_eq!(long.lines().count(), 10, "{long}");
}

#[test]
fn what_does_not_parse_is_not_touched() {
    for text in ["a {", "a 8GiB", "a true", "a b=c=d"] {
        assert!(format("vmprof::tea", "tea.kdl", text).is_err(), "{text}");
    }
}

fn nodes() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "a",
        "b-c",
        "1",
        "-2.5e3",
        "#true",
        "\"x y\"",
        "\"\\\" {\"",
        "#\"r\\\"#",
        "k=1",
        "k = \"v\"",
        "(t)3",
        "/-4",
        "/- k=5",
        "/* c */",
        "\\\n",
        "\\ // d\n",
        "\"\"\"\n  m\n    n\n  \"\"\"",
    ]);
    let end = || {
        prop::sample::select(vec![
            "\n",
            "\n\n\n",
            ";",
            "; ",
            " // t\n",
            "\r\n",
            "\n// own\n",
            "\n/* o\n w */\n",
            "\n  /- off 1 { x; }\n",
        ])
    };
    let line = (
        prop::sample::select(vec!["n", "\"quoted name\"", "(ty)m", "/-o", "/- \n p"]),
        prop::collection::vec(word, 0..4),
    )
        .prop_map(|(name, words)| [vec![name], words].concat().join(" "));
    let leaf = (line.clone(), end()).prop_map(|(line, end)| line + end);
    leaf.prop_recursive(4, 40, 5, move |inner| {
        let open = prop::sample::select(vec!["{", "{ ", "{\n", "{ // head\n", "{\n\n"]);
        let parent = (line.clone(), open, prop::collection::vec(inner.clone(), 0..4), end())
            .prop_map(|(line, open, inner, end)| format!("{line} {open}{}}}{end}", inner.concat()));
        prop_oneof![parent, inner]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn laying_out_twice_changes_nothing_more(parts in prop::collection::vec(nodes(), 0..6)) {
        let text = parts.concat();
        if let Ok(before) = KdlDocument::parse_v2(&text) {
            prop_assert_eq!(crate::shape::misplaced(&text), []);
            let once = formatted(&text);
            prop_assert_eq!(&formatted(&once), &once);
            prop_assert!(same(&before, &KdlDocument::parse_v2(&once).unwrap()));
        }
    }

    #[test]
    fn any_text_is_laid_out_or_refused(text in "[ab1{};=()\"/\\\\*#\n -]{0,40}") {
        if let Err(problems) = format("vmprof::tea", "tea.kdl", &text) {
            prop_assert!(problems.iter().all(|p| !p.code().ends_with("not_formatted")), "{text:?}");
        }
    }
}

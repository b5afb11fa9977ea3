//! What the quick reader gives is what the parser gives, spans included.

use proptest::prelude::*;

use super::*;

fn alike(one: &KdlDocument, other: &KdlDocument) -> bool {
    let pairs = one.nodes().iter().zip(other.nodes());
    one.nodes().len() == other.nodes().len()
        && pairs
            .clone()
            .all(|(a, b)| a.name().value() == b.name().value() && a.name().span() == b.name().span())
        && pairs
            .clone()
            .all(|(a, b)| a.entries().len() == b.entries().len() && a.ty().is_none() && b.ty().is_none())
        && pairs.clone().flat_map(|(a, b)| a.entries().iter().zip(b.entries())).all(|(a, b)| {
            let name = |entry: &KdlEntry| entry.name().map(|name| (name.value().to_owned(), name.span()));
            name(a) == name(b) && a.value() == b.value() && a.span() == b.span() && b.ty().is_none()
        })
        && pairs.clone().all(|(a, b)| match (a.children(), b.children()) {
            (Some(a), Some(b)) => alike(a, b),
            (a, b) => a.is_none_or(KdlDocument::is_empty) && b.is_none_or(KdlDocument::is_empty),
        })
}

fn agrees(text: &str) -> bool {
    match (parse(text), KdlDocument::parse_v2(text)) {
        (None, _) => true,
        (Some(quick), Ok(whole)) => alike(&quick, &whole),
        (Some(_), Err(_)) => false,
    }
}

#[test]
fn ordinary_texts_are_read_quickly() {
    for text in [
        "",
        "/- kdl-version 2\n// why\nprofile db {\n    vcpu 4 { vcpupin auto }\n    disk \"data x\" a=-1 b=\"é\" c=#true /-d=2 {}\n}\n",
        "a; b;c 1 // d\r\n/* /* e */ */\n/- off { x }\nf",
        "\"quoted\" k.x:y=\"\" ",
    ] {
        assert!(parse(text).is_some(), "{text:?}");
        assert!(agrees(text), "{text:?}");
    }
}

#[test]
fn what_is_not_plain_is_left_to_the_parser() {
    for text in [
        "a {",
        "a }",
        "a \"b",
        "a \"b\"c",
        "a \"b\"\"c\"",
        "a true",
        "a 8GiB",
        "a (t)1",
        "a { } b",
        "a{}",
        "a =1",
        "a b= 1",
        "a \"\\n\"",
        "a \"x\ny\"",
        "a 1.5",
        "a 0x10",
        "a #\"r\"#",
        "a \"\"\"\nx\n\"\"\"",
        "a \\\n b",
        ";",
        "a;;",
        "/* a",
        "/-",
        "/-a;",
        "a { /- b; }",
        "/- kdl-version 1\na",
        "a /* b */ c",
        "a \"x\u{2028}y\"",
        "é",
        "a { } { }",
        "a 99999999999999999999",
    ] {
        assert!(parse(text).is_none(), "{text:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_quick_reader_and_the_parser_agree(parts in prop::collection::vec(prop::sample::select(vec![
        "a", "b-c", "k=", "=", "1", "-2", "\"s\"", "\"", "#true", "#x", "{", "}", " { ", " } ", ";", "\n", "\r\n", " ", " ", " ",
        "\t", "// c\n", "/* c */", "/*", "/-", "/- ", "kdl-version", "(t)", ".", ".1", "-", "é", "\\\n", "true", "\u{85}", "\u{a0}",
        "_", ":", "a/b", "0", "00", "-0", "\u{feff}",
    ]), 0..14)) {
        let text = parts.concat();
        prop_assert!(agrees(&text), "{text:?}");
        let misplaced = crate::shape::misplaced(&text);
        // Of what is switched off the parser takes some that is no KDL.
        prop_assert!(misplaced.is_empty() || text.contains("/-") || KdlDocument::parse_v2(&text).is_err(), "{text:?}: {misplaced:?}");
    }
}

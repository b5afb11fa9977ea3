//! Words for a POSIX shell.

/// One word, in single quotes where it holds anything that a shell would look at.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-+=.,:/@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// One command over several lines: the program, then one option a line with its value.
pub(super) fn command(program: &str, options: &[Vec<String>]) -> String {
    let mut lines = vec![quoted(program)];
    lines.extend(options.iter().map(|words| words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" ")));
    let mut text = lines.join(" \\\n  ");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_every_word_as_it_was() {
        let words = [
            "plain",
            "",
            "two words",
            "it's",
            "$HOME `id` \"x\" \\ ! * ? [a] {b,c} ~ # & ; | < > ( )",
            "a\nb\tc",
            "'",
            "--",
            "=x",
            "{\"driver\":\"file\",\"filename\":\"/a b/c'd\"}",
        ];
        let options: Vec<Vec<String>> = words.iter().map(|w| vec![(*w).to_owned()]).collect();
        let command =
            command("printf", &[vec!["%s\\0".to_owned()]].into_iter().chain(options).collect::<Vec<_>>());
        let output = std::process::Command::new("sh").args(["-c", &command]).output().unwrap();
        assert!(output.status.success(), "{command}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.trim_end_matches('\0').split('\0').collect::<Vec<_>>(), words);
    }
}

//! What the writers of `tests/fixtures/proof/writer.pl` promise, and whether a directory keeps it.

use std::collections::BTreeMap;

const RECORD: usize = 16;
const SLOTS: u64 = 64;

/// Files of a directory, by name.
pub type Files = BTreeMap<String, Vec<u8>>;

fn record(name: &str, number: u64) -> Vec<u8> {
    format!("{name:<7}{number:>8}\n").into_bytes()
}

fn number_in(name: &str, record: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(record).ok()?.strip_prefix(&format!("{name:<7}"))?;
    text.trim().parse().ok()
}

/// Checks that all that was promised up to the number `last` is there: how many records were compared, or what is lost.
pub fn kept(name: &str, last: u64, files: &Files) -> Result<u64, String> {
    let mut compared = 0;
    let file = |path: &str| files.get(path).map(Vec::as_slice).unwrap_or_default();
    let all_of = |number: u64, content: &[u8], records: usize| {
        content.len() == records * RECORD && content.chunks(RECORD).all(|one| one == record(name, number))
    };
    for number in 0..=last {
        let lost = |what: &str| Err(format!("{name}: number {number} of {last} was promised, and {what}"));
        match number % 4 {
            0 => {
                let path = format!("f{number}");
                let Some(content) = files.get(&path) else { return lost(&format!("there is no {path}")) };
                if !all_of(number, content, 1 + (number * 37 % 600) as usize) {
                    return lost(&format!("{path} holds something else, in {} bytes", content.len()));
                }
            }
            1 => {
                let at = RECORD * (number / 4) as usize;
                if file("journal").get(at..at + RECORD) != Some(&record(name, number)) {
                    return lost(&format!("the journal of {} bytes lacks it", file("journal").len()));
                }
            }
            // A later one may stand where it stood.
            2 => {
                let found = file("current").get(..RECORD).and_then(|first| number_in(name, first));
                match found {
                    Some(found) if found >= number && all_of(found, file("current"), 300) => {}
                    _ => return lost(&format!("`current` is that of {found:?}")),
                }
            }
            _ => {
                let at = 512 * (number / 4 % SLOTS) as usize;
                let slot = file("slots").get(at..at + 512).unwrap_or_default();
                let found = slot.get(..RECORD).and_then(|first| number_in(name, first));
                match found {
                    Some(found) if found >= number && all_of(found, slot, 512 / RECORD) => {}
                    _ => return lost(&format!("its slot has {found:?}")),
                }
            }
        }
        compared += 1;
    }
    Ok(compared)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(last: u64) -> Files {
        let mut files = Files::from([("slots".to_owned(), record("d0", 0).repeat(32 * 64))]);
        for number in 0..=last {
            match number % 4 {
                0 => {
                    let content = record("d0", number).repeat(1 + (number * 37 % 600) as usize);
                    files.insert(format!("f{number}"), content);
                }
                1 => files.entry("journal".into()).or_default().extend(record("d0", number)),
                2 => drop(files.insert("current".into(), record("d0", number).repeat(300))),
                _ => {
                    let at = 512 * (number / 4 % SLOTS) as usize;
                    let slots = files.get_mut("slots").unwrap();
                    slots[at..at + 512].copy_from_slice(&record("d0", number).repeat(32));
                }
            }
        }
        files
    }

    #[test]
    fn what_is_there_is_kept_and_more_may_be() {
        assert_eq!(kept("d0", 700, &written(700)), Ok(701));
        assert_eq!(kept("d0", 690, &written(700)), Ok(691));
        for last in 700..=703 {
            let lost = kept("d0", last + 1, &written(last)).unwrap_err();
            assert!(lost.contains(&format!("number {} ", last + 1)), "{lost}");
        }
    }

    #[test]
    fn a_byte_that_differs_is_lost() {
        for path in ["f8", "journal", "current", "slots"] {
            let mut files = written(20);
            let content = files.get_mut(path).unwrap();
            content[RECORD - 2] ^= 1;
            assert!(kept("d0", 20, &files).is_err(), "{path}");
        }
    }
}

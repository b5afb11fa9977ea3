use super::*;

impl FailedUnit {
    pub(crate) fn made(name: &str) -> Self {
        FailedUnit { name: name.into(), because: String::new(), invocation: String::new() }
    }
}

#[test]
fn failed_units_are_read_with_how_they_failed() {
    let text = "Id=a.service\nResult=exit-code\nExecMainStatus=3\nInvocationID=0a1b\n\nResult=\nId=dev-sda.swap\n\n\
                Id=b.service\nResult=signal\nExecMainStatus=9\n\nId=c.mount\nResult=exit-code\n\n\
                Id=d.service\nResult=timeout\nExecMainStatus=0\n\nnonsense\n";
    let read = units(text);
    let said: Vec<_> = read.iter().map(|unit| (unit.name.as_str(), unit.because.as_str())).collect();
    assert_eq!(
        said,
        [
            ("a.service", "it exited with status 3"),
            ("dev-sda.swap", "systemd does not say why"),
            ("b.service", "it was killed by signal 9"),
            ("c.mount", "systemd calls it `exit-code`"),
            ("d.service", "it took longer than it may"),
        ]
    );
    assert_eq!(read.first().map(|unit| unit.invocation.as_str()), Some("0a1b"));
    assert_eq!(units(""), []);
}

#[test]
fn a_unit_that_fails_again_is_new_and_one_that_is_still_failed_is_not() {
    let (mut known, mut unit) = (Known::default(), FailedUnit::made("a.service"));
    assert!(known.is_new(&unit) && !known.is_new(&unit));
    unit.invocation = "another".into();
    assert!(known.is_new(&unit));
}

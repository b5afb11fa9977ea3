//! CPUs that the kernel left offline at boot.

use std::fs;
use std::io;
use std::path::Path;

use crate::failure::Failure;

/// Brings every CPU below `directory` (/sys/devices/system/cpu) online. The first one may have no `online` file: it always is.
pub(crate) fn bring_online(directory: &Path) -> Result<(), Failure> {
    let online = |cpu: &Path| -> io::Result<()> {
        let file = cpu.join("online");
        if fs::read_to_string(&file).is_ok_and(|state| state.trim() == "0") {
            fs::write(&file, "1")?;
        }
        Ok(())
    };
    for entry in fs::read_dir(directory).map_err(Failure::step("listing the CPUs"))?.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("cpu"));
        if number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit())) {
            online(&entry.path())
                .map_err(Failure::step(&format!("bringing {} online", name.to_string_lossy())))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cpu_that_can_be_offline_is_brought_online_and_nothing_else_is_touched() {
        let directory = tempfile::tempdir().unwrap();
        for (name, state) in [("cpu1", "0\n"), ("cpu12", "1\n"), ("cpufreq", "0\n")] {
            fs::create_dir(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name).join("online"), state).unwrap();
        }
        fs::create_dir(directory.path().join("cpu0")).unwrap();
        bring_online(directory.path()).unwrap();
        let state = |name: &str| fs::read_to_string(directory.path().join(name).join("online")).unwrap();
        assert_eq!(
            (state("cpu1"), state("cpu12"), state("cpufreq")),
            ("1".into(), "1\n".into(), "0\n".into())
        );
    }
}

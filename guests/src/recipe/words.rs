//! The forms of names in recipes and locks. Names end up in file names, in apt's arguments and on the kernel's command
//! line, so nothing but the plain forms is let through.

/// What a name may look like.
#[derive(Debug)]
pub(crate) struct Form {
    pub(crate) what: &'static str,
    pub(crate) made_of: &'static str,
    first: fn(char) -> bool,
    rest: fn(char) -> bool,
    longest: usize,
}

impl Form {
    pub(crate) fn fits(&self, text: &str) -> bool {
        let mut chars = text.chars();
        text.len() <= self.longest && chars.next().is_some_and(self.first) && chars.all(self.rest)
    }
}

fn alphanumeric(c: char) -> bool {
    c.is_ascii_alphanumeric()
}

fn lower_alphanumeric(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

pub(crate) const PLAIN_NAME: Form = Form {
    what: "a guest's name",
    made_of: "letters, digits, `-`, `_`, `.` and `+`, with a letter or digit first, 64 at most",
    first: alphanumeric,
    rest: |c| alphanumeric(c) || "-_.+".contains(c),
    longest: 64,
};

pub(crate) const HOST_NAME: Form = Form {
    what: "a host name",
    made_of: "letters, digits and `-`, with a letter or digit first, 63 at most",
    first: alphanumeric,
    rest: |c| alphanumeric(c) || c == '-',
    longest: 63,
};

/// Debian policy 5.6.1.
pub(crate) const PACKAGE: Form = Form {
    what: "a Debian package's name",
    made_of: "lower case letters, digits, `+`, `-` and `.`, with a letter or digit first",
    first: lower_alphanumeric,
    rest: |c| lower_alphanumeric(c) || "+-.".contains(c),
    longest: 100,
};

/// Debian policy 5.6.12.
pub(crate) const VERSION: Form = Form {
    what: "a Debian version",
    made_of: "letters, digits and `.`, `+`, `-`, `~` and `:`, with a digit first",
    first: |c| c.is_ascii_digit(),
    rest: |c| alphanumeric(c) || ".+-~:".contains(c),
    longest: 120,
};

pub(crate) const SUITE: Form = Form {
    what: "a suite's name",
    made_of: "lower case letters, digits and `-`, with a letter first",
    first: |c| c.is_ascii_lowercase(),
    rest: |c| lower_alphanumeric(c) || c == '-',
    longest: 40,
};

pub(crate) const MODULE: Form = Form {
    what: "a kernel module's name",
    made_of: "letters, digits, `-` and `_`",
    first: alphanumeric,
    rest: |c| alphanumeric(c) || "-_".contains(c),
    longest: 56,
};

pub(crate) const VARIABLE: Form = Form {
    what: "a variable's name",
    made_of: "letters, digits and `_`, with a letter or `_` first",
    first: |c| c.is_ascii_alphabetic() || c == '_',
    rest: |c| alphanumeric(c) || c == '_',
    longest: 200,
};

/// A setting below /proc/sys. A slash would lead elsewhere.
pub(crate) const SYSCTL: Form = Form {
    what: "a kernel setting's name",
    made_of: "letters, digits, `.`, `_`, `-` and `:`, as in `vm.swappiness`",
    first: alphanumeric,
    rest: |c| alphanumeric(c) || "._-:".contains(c),
    longest: 200,
};

/// A user or a group, as useradd takes them.
pub(crate) const ACCOUNT: Form = Form {
    what: "a name of a user or a group",
    made_of: "lower case letters, digits, `-`, `_` and `.`, with a letter or `_` first, 32 at most",
    first: |c| c.is_ascii_lowercase() || c == '_',
    rest: |c| lower_alphanumeric(c) || "-_.".contains(c),
    longest: 32,
};

/// A disk of a profile; it becomes the device's serial, which ends at 20 bytes (virtio 1.3, 5.2.6).
pub(crate) const DISK: Form = Form {
    what: "a disk's name",
    made_of: "letters, digits, `.`, `_` and `-`, with a letter or digit first, 20 at most, as in the profile",
    first: alphanumeric,
    rest: |c| alphanumeric(c) || "._-".contains(c),
    longest: 20,
};

pub(crate) const SERVICE: Form = Form {
    what: "a service's name",
    made_of: "letters, digits, `-`, `_`, `.` and `@`, with a letter or digit first, 64 at most",
    first: alphanumeric,
    rest: |c| alphanumeric(c) || "-_.@".contains(c),
    longest: 64,
};

/// systemd.unit(5).
pub(crate) const UNIT: Form = Form {
    what: "a unit's name",
    made_of: "letters, digits and `:-_.\\@`",
    first: |c| alphanumeric(c) || "_-".contains(c),
    rest: |c| alphanumeric(c) || ":-_.\\@".contains(c),
    longest: 255,
};

/// Signals that can ask a process to stop; signal(7) on x86-64.
pub(crate) const SIGNALS: [(&str, i32); 9] = [
    ("SIGTERM", 15),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGHUP", 1),
    ("SIGUSR1", 10),
    ("SIGUSR2", 12),
    ("SIGWINCH", 28),
    ("SIGPWR", 30),
    ("SIGKILL", 9),
];

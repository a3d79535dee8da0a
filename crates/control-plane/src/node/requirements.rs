//! What a node needs from the system, and how to get it.

use std::{env, path::Path};

/// A program of the system, and the package of Debian or Ubuntu that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Its name, or its path where it is not on the `PATH`.
    pub program: &'static str,
    /// The package.
    pub package: &'static str,
}

/// All that a node needs.
pub const NODE: [Requirement; 7] = [
    Requirement::new("runc", "runc"),
    Requirement::new("/usr/lib/cni/bridge", "containernetworking-plugins"),
    Requirement::new("iptables", "iptables"),
    Requirement::new("conntrack", "conntrack"),
    Requirement::new("ip", "iproute2"),
    Requirement::new("unshare", "util-linux"),
    Requirement::new("mount", "mount"),
];

impl Requirement {
    /// A requirement.
    pub const fn new(program: &'static str, package: &'static str) -> Self {
        Self { program, package }
    }

    /// Whether the program is there. Folders for programs of the administrator are looked at in any case.
    pub fn is_met(&self) -> bool {
        if self.program.starts_with('/') {
            return Path::new(self.program).exists();
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let of_administrator = ["/usr/sbin", "/sbin"].map(Into::into);
        env::split_paths(&path)
            .chain(of_administrator)
            .any(|folder| folder.join(self.program).is_file())
    }
}

/// The packages of what is missing.
pub fn missing<'a>(requirements: impl IntoIterator<Item = &'a Requirement>) -> Vec<&'static str> {
    let missing = requirements
        .into_iter()
        .filter(|requirement| !requirement.is_met());
    missing.map(|requirement| requirement.package).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::files::PLUGINS, *};

    #[test]
    fn the_package_of_what_is_missing_is_named() {
        let there = Requirement::new("sh", "dash");
        let nowhere = Requirement::new("no-such-program", "some-package");
        let no_file = Requirement::new("/no/such/file", "another");
        assert_eq!(
            missing(&[there, nowhere, no_file]),
            ["some-package", "another"]
        );
    }

    #[test]
    fn the_plugins_are_looked_for_where_containerd_takes_them_from() {
        assert!(
            NODE.iter()
                .any(|one| one.program == format!("{PLUGINS}/bridge"))
        );
    }
}

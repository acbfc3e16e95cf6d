//! How much memory there is for jobs, now.
//!
//! The kernel tells what is available on the whole machine. A control group may bound this process and the workers
//! that it starts below that, and so may each group above it: the least counts. Both versions of control groups are
//! looked at, since machines have either, and some both.
//!
//! A group's bytes include cached files, which the kernel drops before it refuses memory. Those that it would drop
//! first count as free here, as they do in what the kernel says of the machine. Otherwise a group that has read many
//! files would look full forever.
//!
//! It reads some kilobytes from the kernel's own files, in about a tenth of a millisecond.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Memory of the machine, or of the part of it that this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that can be used now, without swapping, by estimate of the kernel.
    pub available_bytes: u64,
}

/// Why it is not known how much memory there is.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A file of the kernel could not be read.
    #[error("reading {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the kernel does not say what it should.
    #[error("{path} does not tell {what}")]
    Untold {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
}

/// How much memory this process and its workers may use, in all and now.
///
/// # Errors
/// [`MemoryError`] when the kernel does not tell, which is no sign that there is enough.
pub fn memory() -> Result<Memory, MemoryError> {
    memory_below(Path::new("/"))
}

/// What the files below `root` say, which is `/` but for tests.
fn memory_below(root: &Path) -> Result<Memory, MemoryError> {
    let path = root.join("proc/meminfo");
    let text = required(&path)?;
    let bytes = |what: &'static str| {
        kib_of(&text, what).ok_or_else(|| MemoryError::Untold { path: path.clone(), what })
    };
    let machine = Memory { total_bytes: bytes("MemTotal")?, available_bytes: bytes("MemAvailable")? };
    groups(root)?.into_iter().try_fold(machine, |least, (version, group)| {
        Ok(version.bounds(&group)?.map_or(least, |bounds| Memory {
            total_bytes: least.total_bytes.min(bounds.total_bytes),
            available_bytes: least.available_bytes.min(bounds.available_bytes),
        }))
    })
}

/// The value of a line like `MemTotal:   24689764 kB`, in bytes.
fn kib_of(meminfo: &str, name: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1 << 10)
}

/// The two interfaces of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Version {
    /// The files with bounds, with the bytes in use, and the entry for cached files in `memory.stat`. The second
    /// version throttles at `memory.high`, long before a job would have ended.
    fn files(self) -> (&'static [&'static str], &'static str, &'static str) {
        match self {
            Self::V1 => (&["memory.limit_in_bytes"], "memory.usage_in_bytes", "total_inactive_file"),
            Self::V2 => (&["memory.max", "memory.high"], "memory.current", "inactive_file"),
        }
    }

    /// What a group leaves to its members; `None` when it has no bound.
    fn bounds(self, group: &Path) -> Result<Option<Memory>, MemoryError> {
        let (bounds, current, cached) = self.files();
        let mut least = None;
        for name in bounds {
            let bound = number(&group.join(name))?;
            least = least.into_iter().chain(bound).min();
        }
        // Nobody has as much as the first version says when there is no bound.
        let Some(total_bytes) = least.filter(|bytes| *bytes < 1 << 62) else { return Ok(None) };
        let current = group.join(current);
        let used_bytes = number(&current)?.ok_or(MemoryError::Untold { path: current, what: "a number" })?;
        let stat = optional(&group.join("memory.stat"))?.unwrap_or_default();
        let cached_bytes = stat.lines().find_map(|line| line.strip_prefix(cached)?.trim().parse().ok());
        let held_bytes = used_bytes.saturating_sub(cached_bytes.unwrap_or(0));
        Ok(Some(Memory { total_bytes, available_bytes: total_bytes.saturating_sub(held_bytes) }))
    }
}

/// The directories of all groups that hold this process, and of those above them.
fn groups(root: &Path) -> Result<Vec<(Version, PathBuf)>, MemoryError> {
    let Some(memberships) = optional(&root.join("proc/self/cgroup"))? else { return Ok(Vec::new()) };
    let mounts = optional(&root.join("proc/self/mountinfo"))?.unwrap_or_default();
    let mut all = Vec::new();
    for mount in mounts.lines().filter_map(Mount::parse) {
        let Some(group) = memberships.lines().find_map(|line| membership(line, mount.version)) else {
            continue;
        };
        let top = root.join(mount.point.strip_prefix("/").unwrap_or(&mount.point));
        let group = top.join(below(group, &mount.root));
        // From the group itself up to what is mounted. What is above that, nobody can see from here.
        let lineage = group.ancestors().take_while(|directory| directory.starts_with(&top));
        all.extend(lineage.map(|directory| (mount.version, directory.to_owned())));
    }
    Ok(all)
}

/// Where control groups are mounted that bound memory.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    version: Version,
    /// Which group the mount shows as its top.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// Reads a line like `30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw`; see proc(5). `None` for other
    /// mounts.
    fn parse(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (unescaped(mount.next()?), unescaped(mount.next()?));
        let mut file_system = file_system.split(' ');
        let version = match (file_system.next()?, file_system.nth(1)?) {
            ("cgroup2", _) => Version::V2,
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => Version::V1,
            _ => return None,
        };
        Some(Self { version, root, point })
    }
}

/// A path in which the kernel has written blanks as `\040`.
fn unescaped(path: &str) -> PathBuf {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\").into()
}

/// The group in a line like `0::/system.slice/spare.service` or `4:memory:/docker/1`.
fn membership(line: &str, version: Version) -> Option<&Path> {
    let (_, line) = line.split_once(':')?;
    let (controllers, group) = line.split_once(':')?;
    let is_meant = match version {
        Version::V1 => controllers.split(',').any(|controller| controller == "memory"),
        Version::V2 => controllers.is_empty(),
    };
    is_meant.then_some(Path::new(group))
}

/// Where a group lies below what is mounted. One that is not there (it is outside of this process's namespace) has
/// no directory here; the top of the mount is then the closest that can be seen.
fn below<'a>(group: &'a Path, mounted: &Path) -> &'a Path {
    let is_plain = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    match group.strip_prefix(mounted) {
        Ok(below) if is_plain(below) => below,
        _ => Path::new(""),
    }
}

/// A file with one number. `None` where there is no such file, or the number is `max`.
fn number(path: &Path) -> Result<Option<u64>, MemoryError> {
    match optional(path)?.as_deref().map(str::trim) {
        None | Some("max") => Ok(None),
        Some(text) => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(MemoryError::Untold { path: path.to_owned(), what: "a number" }),
        },
    }
}

fn required(path: &Path) -> Result<String, MemoryError> {
    fs::read_to_string(path).map_err(|source| MemoryError::Read { path: path.to_owned(), source })
}

/// A file that need not be there: groups come and go, and the topmost has no bounds.
fn optional(path: &Path) -> Result<Option<String>, MemoryError> {
    match required(path) {
        Err(MemoryError::Read { source, .. }) if is_gone(&source) => Ok(None),
        read => read.map(Some),
    }
}

/// A group that is removed while its file is read has no device any more.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MEMINFO: &str =
        "MemTotal:       16777216 kB\nMemFree:          524288 kB\nMemAvailable:    8388608 kB\n";
    const V2: &str = "24 30 0:22 / /proc rw - proc proc rw\n30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    /// A root directory that holds these files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [("proc/meminfo", MEMINFO)].iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn told(files: &[(&str, &str)]) -> (u64, u64) {
        let memory = memory_below(machine(files).path()).unwrap();
        (memory.total_bytes, memory.available_bytes)
    }

    #[test]
    fn a_machine_without_groups_has_what_the_kernel_says() {
        assert_eq!(told(&[]), (16 * GIB, 8 * GIB));
        assert_eq!(told(&[("proc/self/cgroup", "0::/\n"), ("proc/self/mountinfo", V2)]), (16 * GIB, 8 * GIB));
    }

    #[test]
    fn the_least_of_all_groups_above_counts() {
        let group = "sys/fs/cgroup/system.slice/spare.service";
        let slice = "sys/fs/cgroup/system.slice";
        let file = |directory: &str, name: &str| format!("{directory}/{name}");
        let mine = [file(group, "memory.max"), file(group, "memory.current")];
        let above = [file(slice, "memory.max"), file(slice, "memory.current")];
        let base = [("proc/self/cgroup", "0::/system.slice/spare.service\n"), ("proc/self/mountinfo", V2)];
        let with = |more: &[(&str, &str)]| told(&[&base[..], more].concat());

        let unbounded = [(&*mine[0], "max\n"), (&*mine[1], "1\n")];
        assert_eq!(with(&unbounded), (16 * GIB, 8 * GIB));
        let tight_above = [(&*above[0], "4294967296\n"), (&*above[1], "3221225472\n")];
        assert_eq!(with(&[&unbounded[..], &tight_above].concat()), (4 * GIB, GIB));
        let tighter = [(&*mine[0], "2147483648\n"), (&*mine[1], "2147483640\n")];
        assert_eq!(with(&[&tighter[..], &tight_above].concat()), (2 * GIB, 8));
        let beyond = [(&*mine[0], "2147483648\n"), (&*mine[1], "2147500000\n")];
        assert_eq!(with(&beyond), (2 * GIB, 0), "more than the bound is in use, since it was lowered");
    }

    #[test]
    fn cached_files_count_as_free_and_throttling_as_a_bound() {
        let group = "sys/fs/cgroup/g";
        let files = [
            ("proc/self/cgroup", "0::/g\n"),
            ("proc/self/mountinfo", V2),
            (&format!("{group}/memory.max"), "4294967296\n"),
            (&format!("{group}/memory.current"), "4294967296\n"),
            (&format!("{group}/memory.stat"), "anon 4096\ninactive_file 1073741824\nactive_file 5\n"),
        ];
        assert_eq!(told(&files), (4 * GIB, GIB));
        let high = format!("{group}/memory.high");
        assert_eq!(told(&[&files[..], &[(&*high, "3758096384\n")]].concat()), (7 * GIB / 2, GIB / 2));
    }

    #[test]
    fn the_first_version_counts_too_and_beside_the_second() {
        let mounts = "\
            32 25 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            36 25 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
            42 25 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let base = [("proc/self/cgroup", "4:memory:/a/b\n1:cpu:/\n0::/\n"), ("proc/self/mountinfo", mounts)];
        let with = |more: &[(&str, &str)]| told(&[&base[..], more].concat());
        let unbounded = [("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n")];
        assert_eq!(with(&unbounded), (16 * GIB, 8 * GIB));
        let bounded = [
            unbounded[0],
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2147483648\n"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "2147483648\n"),
            ("sys/fs/cgroup/memory/a/memory.stat", "inactive_file 7\ntotal_inactive_file 1073741824\n"),
        ];
        assert_eq!(with(&bounded), (2 * GIB, GIB));
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_top() {
        let bound = [("sys/fs/cgroup/memory.max", "1073741824\n"), ("sys/fs/cgroup/memory.current", "0\n")];
        let shown = V2.replace(" / /sys/fs/cgroup", " /docker/1 /sys/fs/cgroup");
        for (membership, mounts) in [("0::/\n", V2), ("0::/docker/1\n", &shown), ("0::/../other\n", V2)] {
            let base = [("proc/self/cgroup", membership), ("proc/self/mountinfo", mounts)];
            assert_eq!(told(&[&base[..], &bound].concat()), (GIB, GIB), "{membership}");
        }
    }

    #[test]
    fn mounts_are_read_with_their_blanks_and_optional_fields() {
        let mount = Mount::parse("30 23 0:26 /a\\040b /x\\040y rw shared:4 master:1 - cgroup2 cgroup2 rw");
        let expected = Mount { version: Version::V2, root: "/a b".into(), point: "/x y".into() };
        assert_eq!(mount, Some(expected));
        for other in
            ["", "30 23 0:26 / / rw - ext4 /dev/vda rw", "1 2 3 - cgroup2", "1 2 3 / /x rw - cgroup c rw,cpu"]
        {
            assert_eq!(Mount::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_not_plenty() {
        let root = machine(&[("proc/meminfo", "MemTotal: 1 kB\nMemAvailable: many\n")]);
        let error = memory_below(root.path()).unwrap_err();
        assert!(matches!(error, MemoryError::Untold { what: "MemAvailable", .. }), "{error}");
        fs::remove_file(root.path().join("proc/meminfo")).unwrap();
        assert!(matches!(memory_below(root.path()), Err(MemoryError::Read { .. })));
        let group = [
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/memory.max", "little\n"),
        ];
        assert!(matches!(memory_below(machine(&group).path()), Err(MemoryError::Untold { .. })));
    }

    #[test]
    fn this_machine_has_memory() {
        let memory = memory().unwrap();
        println!("{memory:?}");
        assert!(memory.available_bytes > 0 && memory.available_bytes <= memory.total_bytes, "{memory:?}");
    }
}

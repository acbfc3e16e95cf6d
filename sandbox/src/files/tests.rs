use proptest::prelude::*;

use super::change::NewTime;
use super::*;

const LIMIT_BYTES: u64 = 1_000;
const LIMIT_COUNT: u32 = 12;

fn files() -> Files {
    let input = |path: &str| Input { path: path.into(), bytes: b"input".to_vec() };
    Files::new(vec![input("in/a"), input("b")], LIMIT_BYTES, LIMIT_COUNT, 0).expect("the inputs make a tree")
}

fn create() -> Opening {
    Opening { create: true, write: true, ..Opening::default() }
}

impl Files {
    /// Everything that is counted or said twice, counted again from the nodes.
    fn check(&self) {
        let (mut bytes, mut count) = (0, 0);
        for (&inode, node) in &self.nodes {
            if let (Content::File(content), true) = (&node.content, node.writable) {
                bytes += content.len() as u64;
            }
            count += u32::from(node.writable);
            assert!(node.linked || node.opened > 0, "{inode} is of no use");
            if let Content::Directory(entries) = &node.content {
                for (name, &child) in entries {
                    let child = self.node(child);
                    assert_eq!((child.parent, &child.name, child.linked), (inode, name, true));
                }
            }
            if node.linked && inode != ROOT {
                assert_eq!(self.child(node.parent, &node.name), Ok(inode));
                assert!(self.depth(node.parent) < limits::DEPTH + 1);
            }
        }
        // /out and /tmp were not made by the program.
        assert_eq!((self.bytes, self.count), (bytes, count - 2));
        assert!(self.bytes <= LIMIT_BYTES && self.count <= LIMIT_COUNT);
        assert_eq!(self.read(self.lookup(ROOT, "in/a").expect("inputs stay"), 0), Ok(&b"input"[..]));
    }
}

#[test]
fn inputs_cannot_be_changed() {
    let mut files = files();
    let is_read_only = |result: Result<(), FileError>| assert_eq!(result, Err(FileError::ReadOnly));
    is_read_only(files.open(ROOT, "b", create(), 1).map(drop));
    is_read_only(files.open(ROOT, "new", create(), 1).map(drop));
    is_read_only(files.open(ROOT, "b", Opening { truncate: true, ..Opening::default() }, 1).map(drop));
    is_read_only(files.create_directory(ROOT, "in/new", 1));
    is_read_only(files.remove_file(ROOT, "b", 1));
    is_read_only(files.remove_directory(ROOT, "out", 1));
    is_read_only(files.rename((ROOT, "b"), (ROOT, "out/b"), 1).map(drop));
    is_read_only(files.rename((ROOT, "out"), (ROOT, "tmp/out"), 1).map(drop));
    let inode = files.lookup(ROOT, "b").expect("it is there");
    is_read_only(files.write(inode, 0, b"x", 1));
    is_read_only(files.set_size(inode, 0, 1));
    is_read_only(files.set_times(inode, NewTime::At(1), NewTime::Same, 1));
    files.check();
}

#[test]
fn paths_follow_the_rules() {
    let mut files = files();
    let long = "x".repeat(limits::NAME_BYTES + 1);
    let longer = "./".repeat(limits::PATH_BYTES);
    for (path, expected) in [
        ("", Err(FileError::NotFound)),
        ("nothing", Err(FileError::NotFound)),
        ("nothing/below", Err(FileError::NotFound)),
        ("b/below", Err(FileError::NotDirectory)),
        ("b/", Err(FileError::NotDirectory)),
        ("b/.", Err(FileError::NotDirectory)),
        ("b/..", Err(FileError::NotDirectory)),
        ("..", Err(FileError::NotPermitted)),
        ("in/../..", Err(FileError::NotPermitted)),
        ("/b", Err(FileError::NotPermitted)),
        ("zero\0", Err(FileError::Invalid)),
        (&long, Err(FileError::NameTooLong)),
        (&longer, Err(FileError::NameTooLong)),
        (".", Ok(())),
        ("in//a", Ok(())),
        ("in/./a", Ok(())),
        ("in/../b", Ok(())),
        ("in/", Ok(())),
    ] {
        assert_eq!(files.lookup(ROOT, path).map(drop), expected, "{path:.20}");
    }
    let deep = |files: &mut Files, depth: usize| {
        files.create_directory(ROOT, &format!("out{}", "/d".repeat(depth)), 1)
    };
    files.limit_count = 100;
    for depth in 1..limits::DEPTH {
        assert_eq!(deep(&mut files, depth), Ok(()), "{depth}");
    }
    assert_eq!(deep(&mut files, limits::DEPTH), Err(FileError::NameTooLong));
    assert_eq!(files.create_directory(ROOT, "out/e", 1), Ok(()));
    let moved = files.rename((ROOT, "out/d"), (ROOT, "out/e/d"), 1);
    assert_eq!(moved, Err(FileError::NameTooLong), "nor does it get deeper by moving");
    assert_eq!(
        files.rename((ROOT, "out/d"), (ROOT, "out/d/d/e"), 1),
        Err(FileError::Invalid),
        "nor inside itself"
    );
}

#[test]
fn a_removed_file_counts_until_it_is_closed() {
    let mut files = files();
    let inode = files.open(ROOT, "tmp/file", create(), 1).expect("there is room");
    files.write(inode, 0, &[1; 1_000], 1).expect("there is room");
    files.remove_file(ROOT, "tmp/file", 1).expect("it is there");
    assert_eq!((files.stat(inode).links, files.read(inode, 999)), (0, Ok(&[1][..])));
    let other = files.open(ROOT, "out/file", create(), 1).expect("there is room");
    assert_eq!(files.write(other, 0, b"x", 1), Err(FileError::NoSpace));
    files.release(inode);
    assert_eq!(files.write(other, 0, b"x", 1), Ok(()));
    files.check();
}

#[test]
fn what_is_cut_is_given_back() {
    let mut bytes = Vec::new();
    assert!(resize(&mut bytes, 1 << 20) && resize(&mut bytes, 10));
    assert!(bytes.capacity() < 100);
    assert!(!resize(&mut bytes, u64::MAX));
}

#[derive(Debug, Clone)]
enum Step {
    Open(usize, bool, bool),
    Write(usize, u64, usize),
    SetSize(usize, u64),
    Close(usize),
    CreateDirectory(usize),
    RemoveDirectory(usize),
    RemoveFile(usize),
    Rename(usize, usize),
}

const PATHS: [&str; 12] = [
    "out/a",
    "out/b",
    "out/a/c",
    "out/a/c/d",
    "out/b/../a/e",
    "tmp/a",
    "tmp/a/f",
    "tmp",
    "b",
    "in/a",
    "out/a/",
    "../x",
];

fn step() -> impl Strategy<Value = Step> {
    let path = || 0..PATHS.len();
    prop_oneof![
        (path(), any::<bool>(), any::<bool>())
            .prop_map(|(path, truncate, exclusive)| Step::Open(path, truncate, exclusive)),
        (any::<usize>(), 0..1_200_u64, 0..300_usize)
            .prop_map(|(open, offset, length)| Step::Write(open, offset, length)),
        (any::<usize>(), 0..1_200_u64).prop_map(|(open, size)| Step::SetSize(open, size)),
        any::<usize>().prop_map(Step::Close),
        path().prop_map(Step::CreateDirectory),
        path().prop_map(Step::RemoveDirectory),
        path().prop_map(Step::RemoveFile),
        (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
    ]
}

/// Does a step; what is refused is as good as what is not.
fn take(files: &mut Files, open: &mut Vec<Inode>, step: Step) {
    let pick = |open: &[Inode], index: usize| (!open.is_empty()).then(|| open[index % open.len()]);
    match step {
        Step::Open(path, truncate, exclusive) => {
            open.extend(files.open(ROOT, PATHS[path], Opening { truncate, exclusive, ..create() }, 1));
        }
        Step::Write(index, offset, length) => {
            let _ = pick(open, index).map(|inode| files.write(inode, offset, &vec![1; length], 1));
        }
        Step::SetSize(index, size) => {
            let _ = pick(open, index).map(|inode| files.set_size(inode, size, 1));
        }
        Step::Close(index) => {
            if !open.is_empty() {
                files.release(open.swap_remove(index % open.len()));
            }
        }
        Step::CreateDirectory(path) => drop(files.create_directory(ROOT, PATHS[path], 1)),
        Step::RemoveDirectory(path) => drop(files.remove_directory(ROOT, PATHS[path], 1)),
        Step::RemoveFile(path) => drop(files.remove_file(ROOT, PATHS[path], 1)),
        Step::Rename(from, to) => drop(files.rename((ROOT, PATHS[from]), (ROOT, PATHS[to]), 1)),
    }
}

proptest! {
    #[test]
    fn whatever_is_done_the_counts_are_exact(steps in proptest::collection::vec(step(), 1..120)) {
        let (mut files, mut open) = (files(), Vec::new());
        for step in steps {
            take(&mut files, &mut open, step);
            files.check();
        }
        open.into_iter().for_each(|inode| files.release(inode));
        files.check();
        let outputs = files.into_outputs();
        prop_assert!(outputs.is_sorted_by(|a, b| a.path < b.path));
        prop_assert!(outputs.iter().map(|output| output.bytes.len() as u64).sum::<u64>() <= LIMIT_BYTES);
    }
}

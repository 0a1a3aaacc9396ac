//! Processes of a test: children of the test's own process, in a cgroup and a network namespace.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    path::Path,
    process::Command,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, pipe},
};

/// A network namespace, held by its descriptor.
pub(crate) struct Netns(pub(crate) File);

impl Netns {
    /// A new one, with lo up.
    pub(crate) fn new() -> Self {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run(&["ip", "link", "set", "lo", "up"]);
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        Self(file)
    }

    /// The calling thread's.
    pub(crate) fn current() -> Self {
        Self(File::open("/proc/thread-self/ns/net").unwrap())
    }

    /// Runs work on a thread inside.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                    work()
                })
                .join()
                .unwrap()
        })
    }

    /// Runs a command inside, words split at spaces.
    pub(crate) fn sh(&self, command: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        self.within(|| run(&words));
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words:?}: {error}");
}

/// A running child. Killed when dropped.
pub(crate) struct Process {
    pid: Pid,
    output: File,
}

impl Process {
    /// Starts work in a cgroup and a netns. What it writes to its file can be read here.
    pub(crate) fn start(cgroup: &Path, netns: &Netns, work: impl FnOnce(&mut File)) -> Self {
        let (reader, writer) = pipe().unwrap();
        let procs = cgroup.join("cgroup.procs");
        // SAFETY: the child runs ordinary code, which glibc's allocator allows after a fork; it
        // ends without returning into the test.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => {
                drop(writer);
                Self {
                    pid: child,
                    output: File::from(reader),
                }
            }
            ForkResult::Child => {
                let mut output = File::from(writer);
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    // SAFETY: a plain system call.
                    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                    std::fs::write(procs, "0").unwrap();
                    setns(netns.fd(), CloneFlags::CLONE_NEWNET).unwrap();
                    work(&mut output);
                }));
                if result.is_err() {
                    let _ = output.write_all(b"panic");
                }
                // SAFETY: ends the child without running the test's exit handlers.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Runs work to its end and gives what it returned.
    pub(crate) fn call(cgroup: &Path, netns: &Netns, work: impl FnOnce() -> String) -> String {
        let mut process = Self::start(cgroup, netns, |output| {
            let result = work();
            output.write_all(result.as_bytes()).unwrap();
        });
        let mut result = String::new();
        process.output.read_to_string(&mut result).unwrap();
        result
    }

    /// One line of the child's output.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.output.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// A descriptor of the child's.
    pub(crate) fn steal(&self, number: i32) -> OwnedFd {
        // SAFETY: plain system calls; the second makes a descriptor that is ours alone.
        unsafe {
            let process = libc::syscall(libc::SYS_pidfd_open, self.pid.as_raw(), 0) as i32;
            assert!(process >= 0);
            let process = OwnedFd::from_raw_fd(process);
            let stolen =
                libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) as i32;
            assert!(stolen >= 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(stolen)
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

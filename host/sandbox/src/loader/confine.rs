//! What the compiler's child takes away from itself before it reads the first byte of a stranger's component.
//!
//! Owns the list of what compiling needs: memory, the three pipes that it was given, a clock, an end. Everything else
//! is gone in layers, each of which holds without the others: limits of the kernel on processor time, memory, files and
//! processes; Landlock, where the kernel has it, on the file system, TCP and signals; and seccomp on the calls
//! themselves. Refuses to know what is compiled. Called by [`super::child`], and by tests that then try what is left.

use std::collections::BTreeMap;
use std::io;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, RulesetError, RulesetStatus, Scope,
};
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::getpid;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::order::Order;
use crate::unhurried::yield_to_everybody;

/// After the limit's signal, until the kernel kills without asking.
const PROCESSOR_GRACE_S: u64 = 5;
/// New ones: standard input, output and error are open already and stay so. At three, whoever took this process over
/// could close one of them and open a socket in its place.
const DESCRIPTORS_MAX: u64 = 0;
/// New ones, threads among them, once the watch over the parent runs: compiling is one thread's work.
const PROCESSES_MAX: u64 = 0;

/// Whether a component may be compiled on a kernel that cannot refuse calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Confinement {
    /// No compilation without seccomp.
    #[default]
    Required,
    /// Whatever layers there are: `souk serve`, and where an operator says so. Each compilation without seccomp is a
    /// warning in the log.
    BestEffort,
}

impl Confinement {
    pub(super) const ALL: [Self; 2] = [Self::Required, Self::BestEffort];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::BestEffort => "best_effort",
        }
    }
}

/// The layers that a kernel may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Layers {
    pub(super) seccomp: bool,
    pub(super) landlock: bool,
}

impl Layers {
    /// As the child tells it: one letter, so that who looks at a pipe can read it.
    pub(super) fn to_byte(self) -> u8 {
        b'0' + u8::from(self.seccomp) + 2 * u8::from(self.landlock)
    }

    pub(super) fn of(byte: u8) -> Option<Self> {
        let bits = byte.checked_sub(b'0').filter(|bits| *bits < 4)?;
        Some(Self { seccomp: bits & 1 != 0, landlock: bits & 2 != 0 })
    }
}

/// The layers that need the file system, a descriptor or a thread to put up. The process can still start its own
/// threads afterwards; [`shut`] ends that.
pub(super) fn confine(order: &Order) -> io::Result<Layers> {
    close_inherited()?;
    // No other process of this user may look into this one, or write into it.
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    // Before the limit on descriptors: its rules are held by one until they apply.
    let landlock = landlock().is_ok_and(|status| status != RulesetStatus::NotEnforced);
    let limit = |resource, max| setrlimit(resource, max, max);
    limit(Resource::RLIMIT_NOFILE, DESCRIPTORS_MAX)?;
    limit(Resource::RLIMIT_FSIZE, 0)?;
    limit(Resource::RLIMIT_CORE, 0)?;
    limit(Resource::RLIMIT_AS, order.memory_bytes_max)?;
    setrlimit(Resource::RLIMIT_CPU, order.processor_s_max, order.processor_s_max + PROCESSOR_GRACE_S)?;
    yield_to_everybody()?;
    Ok(Layers { seccomp: false, landlock })
}

/// The last step: from here on there are no new threads, and no call but those of [`allowed`].
pub(super) fn shut(order: &Order, layers: Layers) -> io::Result<Layers> {
    setrlimit(Resource::RLIMIT_NPROC, PROCESSES_MAX, PROCESSES_MAX)?;
    match seccomp() {
        Ok(()) => Ok(Layers { seccomp: true, ..layers }),
        Err(_) if order.confinement == Confinement::BestEffort => Ok(layers),
        Err(error) => Err(io::Error::other(format!(
            "this kernel does not refuse system calls ({error}); a kernel with seccomp filters is needed, \
             or `seccomp = \"best_effort\"` under [compiler]"
        ))),
    }
}

/// Our own descriptors are closed by the kernel when another program begins; those that we were given without that
/// mark are not.
fn close_inherited() -> io::Result<()> {
    let mut inherited: Vec<i32> = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        inherited.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()).filter(|fd| *fd > 2));
    }
    for fd in inherited {
        // One of them was the listing's own and is closed already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// No file, no TCP port, no signal or abstract socket to anybody outside: as much of it as this kernel knows.
fn landlock() -> Result<RulesetStatus, RulesetError> {
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V5))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// Two filters, of which the kernel obeys the stricter. What is on no list is refused as if the file system were
/// empty: libraries look around and go on. What only somebody who took the compiler over would try ends the process, so
/// that the refusal has a name.
fn seccomp() -> Result<(), seccompiler::Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let lists = [
        SeccompFilter::new(allowed()?, refused, SeccompAction::Allow, arch)?,
        SeccompFilter::new(fatal(), SeccompAction::Allow, SeccompAction::KillProcess, arch)?,
    ];
    // The fatal list goes in first: the other one allows no further filter.
    for filter in lists.into_iter().rev() {
        let program: BpfProgram = filter.try_into()?;
        seccompiler::apply_filter_all_threads(&program)?;
    }
    Ok(())
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What compiling, panicking and ending take. No call here makes a descriptor, a process or executable memory, or
/// reaches another process.
fn allowed() -> Result<Rules, BackendError> {
    let mut rules: Rules = [
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_restart_syscall,
        libc::SYS_sigaltstack,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ]
    .into_iter()
    .map(|call| (call, Vec::new()))
    .collect();
    let own_pid = u64::from(getpid().as_raw().unsigned_abs());
    for call in [libc::SYS_kill, libc::SYS_tgkill] {
        rules.insert(call, vec![only_if(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, own_pid)?]);
    }
    // The protection is the third argument of both.
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let data = only_if(2, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(executable), 0)?;
        rules.insert(call, vec![data]);
    }
    Ok(rules)
}

fn only_if(
    argument: u8,
    width: SeccompCmpArgLen,
    is: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, width, is, value)?])
}

/// What nothing in this process asks for once it is shut: other programs, processes and threads, the network, other
/// processes' memory, and the doors through which kernels are broken into.
fn fatal() -> Rules {
    let mut calls = vec![
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_accept4,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_bpf,
        libc::SYS_io_uring_setup,
        libc::SYS_userfaultfd,
        libc::SYS_perf_event_open,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_memfd_create,
        libc::SYS_open_by_handle_at,
    ];
    // Other machines make processes by `clone` only.
    #[cfg(target_arch = "x86_64")]
    calls.extend([libc::SYS_fork, libc::SYS_vfork]);
    calls.into_iter().map(|call| (call, Vec::new())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_read_as_they_were_told() {
        for (seccomp, landlock) in [(false, false), (true, false), (false, true), (true, true)] {
            let layers = Layers { seccomp, landlock };
            assert_eq!(Layers::of(layers.to_byte()), Some(layers));
        }
        assert_eq!((Layers::of(b'4'), Layers::of(b'/'), Layers::of(0)), (None, None, None));
    }

    #[test]
    fn nothing_is_both_allowed_and_fatal() {
        let (allowed, fatal) = (allowed().unwrap(), fatal());
        assert!(fatal.keys().all(|call| !allowed.contains_key(call)));
    }
}

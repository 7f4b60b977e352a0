//! Where each worker lives: in a network namespace with an address of its own, or beside the others.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::plan::Cut;
use super::wire::{Weather, Wire};

/// How slow a slow network is.
const NETEM: &str = "netem delay 80ms 40ms loss 3%";
/// The same for a kernel without netem: some kilobytes a second, and a long queue.
const BUCKET: &str = "tbf rate 64kbit burst 2kb latency 4s";
const DELAY: Duration = Duration::from_millis(60);

/// One worker's network.
#[derive(Debug)]
pub struct Ground {
    pub wire: Wire,
    /// Where the wire begins.
    address: Ipv4Addr,
    namespace: Option<Namespace>,
}

/// A network namespace that is joined with this one by a pair of devices; it is removed with this.
#[derive(Debug)]
struct Namespace {
    name: String,
    gateway: Ipv4Addr,
    /// What the kernel calls what makes it slow; `None` where it has nothing of the kind.
    slow: Option<&'static str>,
}

impl Ground {
    /// The network of the worker of this number; in a namespace where that can be.
    pub async fn lay(worker: usize, server: PathBuf, namespaces: bool) -> Self {
        let namespace = namespaces.then(|| Namespace::make(worker).unwrap());
        let address = namespace.as_ref().map_or(Ipv4Addr::LOCALHOST, |namespace| namespace.gateway);
        Self { wire: Wire::to(server, address).await, address, namespace }
    }

    pub fn url(&self) -> String {
        format!("postgres://callsheet@{}:{}/test?sslmode=disable", self.address, self.wire.port)
    }

    /// What a program is started through, so that it is there.
    pub fn entrance(&self) -> Vec<String> {
        let Some(namespace) = &self.namespace else { return Vec::new() };
        vec!["nsenter".to_owned(), format!("--net=/run/netns/{}", namespace.name)]
    }

    pub fn cut(&self, cut: Cut) {
        let (out_held, in_held) = (cut != Cut::In, cut != Cut::Out);
        match &self.namespace {
            Some(namespace) => namespace.drop_packets(out_held, in_held),
            None => self.wire.set(Weather { out_held, in_held, ..Weather::default() }),
        }
    }

    pub fn slow(&self) {
        match &self.namespace {
            Some(namespace) if namespace.slow.is_some() => namespace.slow_down().unwrap(),
            _ => self.wire.set(Weather { delay: DELAY, ..Weather::default() }),
        }
    }

    /// All is well again.
    pub fn mend(&self) {
        self.wire.set(Weather::default());
        if let Some(namespace) = &self.namespace {
            namespace.mend();
        }
    }
}

/// What this machine has for the trial, as a sentence, and whether that is namespaces.
pub fn survey() -> (bool, String) {
    match Namespace::make(99) {
        Ok(namespace) => {
            let slow = namespace.slow.map_or("the proxy's delay (no netem, no tbf here)", |slow| match slow {
                NETEM => "netem",
                _ => "tbf (no netem here)",
            });
            (true, format!("each worker in a network namespace of its own, cut off by nftables, slowed by {slow}"))
        }
        Err(why) => {
            (false, format!("no network namespaces here ({why}): workers share one network, a proxy cuts and delays"))
        }
    }
}

impl Namespace {
    fn make(worker: usize) -> Result<Self, String> {
        let pid = std::process::id();
        let (name, outside) = (format!("cs{pid}-{worker}"), format!("cs{}v{worker}", pid % 100_000));
        let [second, third] = [100 + pid / 256 % 100, pid % 256].map(|part| u8::try_from(part).unwrap_or(0));
        let fourth = u8::try_from(worker % 32).unwrap_or(0) * 4;
        let [gateway, own] = [1, 2].map(|host| Ipv4Addr::new(10, second, third, fourth + host));
        run("ip", &format!("netns add {name}"))?;
        let mut namespace = Self { name, gateway, slow: None };
        let Self { name, .. } = &namespace;
        run("ip", &format!("link add {outside} type veth peer name eth0 netns {name}"))?;
        run("ip", &format!("addr add {gateway}/30 dev {outside}"))?;
        run("ip", &format!("link set {outside} up"))?;
        for line in [format!("addr add {own}/30 dev eth0"), "link set eth0 up".to_owned(), "link set lo up".to_owned()]
        {
            run("ip", &format!("-n {name} {line}"))?;
        }
        namespace.filter("add table inet cut")?;
        namespace.slow = [NETEM, BUCKET].into_iter().find(|slow| {
            namespace.slow = Some(slow);
            namespace.slow_down().is_ok()
        });
        namespace.mend();
        Ok(namespace)
    }

    fn drop_packets(&self, out: bool, r#in: bool) {
        let chain = |hook: &str| {
            format!("add chain inet cut {hook} {{ type filter hook {hook} priority 0; policy accept; }}\n")
        };
        let mut script = String::new();
        if out {
            script += &(chain("output") + "add rule inet cut output oifname != \"lo\" drop\n");
        }
        if r#in {
            script += &(chain("input") + "add rule inet cut input iifname != \"lo\" drop\n");
        }
        self.filter(&script).unwrap();
    }

    fn slow_down(&self) -> Result<(), String> {
        let slow = self.slow.unwrap_or(NETEM);
        run("tc", &format!("-n {} qdisc replace dev eth0 root {slow}", self.name))
    }

    fn mend(&self) {
        self.filter("flush table inet cut\ndelete table inet cut\nadd table inet cut\n").unwrap();
        // There is none where it was not slow.
        let _ = run("tc", &format!("-n {} qdisc del dev eth0 root", self.name));
    }

    fn filter(&self, script: &str) -> Result<(), String> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "nft", "-f", "-"]);
        finish(command, script)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its devices go with it.
        let _ = run("ip", &format!("netns del {}", self.name));
    }
}

fn run(program: &str, line: &str) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(line.split(' '));
    finish(command, "").map_err(|why| format!("{program} {line}: {why}"))
}

fn finish(mut command: Command, input: &str) -> Result<(), String> {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| error.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(|error| error.to_string())?;
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

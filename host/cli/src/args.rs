//! What can be asked on the command line. Nothing here acts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use souk_commerce::id::{SiteId, Sku};
use souk_config::doors::WORKERS_MAX;
use souk_config::{
    AccessConfig, AccessFormat, AccessTo, CachePolicy, CertificateFiles, Doors, HttpsDoor, LogConfig,
    LogFormat, PolicyRoute, SAMPLED_PER_MILLE_DEFAULT, TraceConfig,
};
use souk_sandbox::http::{Grant, HttpLimits};

use crate::audit::AuditArgs;
use crate::backup::BackupCommand;
use crate::cache::CacheCommand;
use crate::compile::CompileArgs;
use crate::failure::Usage;
use crate::identity::IdentityCommand;
use crate::import::ColumnChoice;
use crate::order::OrderArgs;
use crate::pair::PairCommand;
use crate::plugin;
use crate::purge::PurgeArgs;
use crate::replay::Rate;
use crate::shopper::ShopperArgs;
use crate::token::TokenCommand;

use self::acme::AcmeArgs;
pub(crate) use self::limits::LimitArgs;
pub(crate) use self::upstream::UpstreamArgs;

mod acme;
mod limits;
mod upstream;

#[derive(Debug, Parser)]
#[command(
    name = "souk",
    version,
    about = "An edge platform for shops: nodes near the shopper run each merchant's plugins and keep working without their region",
    after_help = "Exit codes: 0 done · 1 failed · 2 wrong usage or wrong configuration.\n\
                  Begin with `souk demo`: it raises a region, two nodes and a shop, and says what to try.",
    disable_help_subcommand = true
)]
pub(crate) struct Souk {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Raise a region, two nodes and a sample shop on this machine
    Demo(DemoArgs),
    /// Run an edge node
    Edge(EdgeArgs),
    /// Run a region
    Region(RegionArgs),
    /// Run a node as a caching reverse proxy: no region, no file
    Proxy(Box<ProxyArgs>),
    /// Ask a proxy's cache
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Serve any wasi:http component behind the sandbox
    Serve(ServeArgs),
    /// Work on plugins
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Change a merchant's site at its region
    Site(SiteArgs),
    /// Have every node forget what it has stored of a site
    Purge(PurgeArgs),
    /// Look after a shop's orders: take their money, send, cancel, refund
    Order(OrderArgs),
    /// Give a shopper what a shop keeps of him, or erase it
    Shopper(ShopperArgs),
    /// Make the certificates by which nodes and their region know each other
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// See who changed what at a region, and whether the account of it is whole
    Audit(AuditArgs),
    /// Compile one component for a parent process
    #[command(hide = true)]
    Compile(CompileArgs),
}

/// When a server process says that it is ready, and when it ends.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Lifetime {
    /// Write the addresses listened on to FILE, one JSON object, once they answer (useful with port 0)
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
    /// End when standard input is closed: a supervisor that dies takes this process along
    #[arg(long)]
    pub(crate) exit_with_parent: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LogArgs {
    /// Form of the log on standard error
    #[arg(long, value_enum, default_value_t = LogChoice::Text, value_name = "FORM")]
    log_format: LogChoice,
    /// What to log: `info`, `debug`, `souk_edge=debug,info`
    #[arg(long, default_value = "info", value_name = "FILTER", env = "SOUK_LOG")]
    log: String,
}

impl LogArgs {
    pub(crate) fn config(&self) -> LogConfig {
        let format = match self.log_format {
            LogChoice::Text => LogFormat::Text,
            LogChoice::Json => LogFormat::Json,
        };
        LogConfig { format, filter: self.log.clone() }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogChoice {
    Text,
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  souk edge --config /etc/souk/edge.toml\n\n\
                        A commented configuration lies in edge-config/examples/edge.toml.")]
pub(crate) struct EdgeArgs {
    /// The node's settings (TOML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) lifetime: Lifetime,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegionCommand {
    #[command(flatten)]
    Backup(BackupCommand),
    #[command(flatten)]
    Pair(PairCommand),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  souk region --config /etc/souk/region.toml\n  \
                  souk region backup --config /etc/souk/region.toml /var/backups/souk\n  \
                  souk region verify /var/backups/souk\n  \
                  souk region restore --config /etc/souk/region.toml /var/backups/souk\n  \
                  souk region follow --config /etc/souk/region.toml\n  \
                  souk region takeover --region http://127.0.0.1:7080\n\n\
                  A commented configuration lies in edge-config/examples/region.toml.",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct RegionArgs {
    #[command(subcommand)]
    pub(crate) command: Option<RegionCommand>,
    /// The region's settings (TOML)
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) lifetime: Lifetime,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  souk proxy --listen 127.0.0.1:8080 --upstream http://127.0.0.1:3000\n  \
                        souk proxy --listen 0.0.0.0:80 --upstream https://shop.example.com --log-format json\n  \
                        souk proxy --listen 0.0.0.0:80 --upstream http://127.0.0.1:3000 --compress --access-log /var/log/souk/access.log\n  \
                        souk proxy --listen 0.0.0.0:80 --upstream http://a:8080 --upstream \"http://b:8080;weight=3\" --health-path /healthz\n  \
                        souk proxy --listen 0.0.0.0:80 --upstream https://shop.example.com \\\n             \
                        --disk /var/cache/souk --disk-size \"20 GiB\"\n  \
                        souk proxy --tls 0.0.0.0:443 --cert shop.pem --key shop.key --http3 --upstream http://127.0.0.1:3000\n  \
                        souk proxy --listen 0.0.0.0:80 --tls 0.0.0.0:443 --upstream http://127.0.0.1:3000 --acme-domain shop.example \\\n             \
                        --acme-directory https://acme-v02.api.letsencrypt.org/directory --acme-cache /var/lib/souk/acme\n\n\
                        Certificates are read again when their files change. The first pair answers every name that no other pair\n\
                        is for."
)]
pub(crate) struct ProxyArgs {
    #[command(flatten)]
    pub(crate) doors: DoorArgs,
    /// Serve health and metrics here, and take purges: POST /purge with {"tags": ["home"]}
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Option<SocketAddr>,
    /// Memory for stored responses, such as "512 MiB" [default: 256 MiB]
    #[arg(long, value_name = "SIZE", value_parser = souk_config::value::parse_bytes)]
    pub(crate) memory: Option<u64>,
    /// Keep larger responses in slices, such as "64 MiB", where the upstream answers ranges [default: 8 MiB]
    #[arg(long, value_name = "SIZE", value_parser = souk_config::value::parse_bytes)]
    pub(crate) slice_from: Option<u64>,
    /// Keep stored responses in this folder too, for after a restart
    #[arg(long, value_name = "DIR")]
    pub(crate) disk: Option<PathBuf>,
    /// Disk for stored responses, such as "20 GiB" [default: 4 GiB]
    #[arg(long, value_name = "SIZE", requires = "disk", value_parser = souk_config::value::parse_bytes)]
    pub(crate) disk_size: Option<u64>,
    /// How far the cache goes: safe for shops, heuristic to guess lifetimes beside that, strict for all that RFC 9111 allows,
    /// or pass to keep nothing
    #[arg(long, value_name = "safe|heuristic|strict|pass", default_value = "safe")]
    pub(crate) policy: CachePolicy,
    /// Another policy for everything under a path, such as /assets=strict or /account=pass; the longest path counts
    #[arg(long = "policy-route", value_name = "PATH=POLICY")]
    pub(crate) policy_routes: Vec<PolicyRoute>,
    /// Encode stored texts once (br, zstd, gzip), behind the first request's back, for clients that take it
    #[arg(long)]
    pub(crate) compress: bool,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    #[command(flatten)]
    pub(crate) trace: TraceArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(flatten)]
    pub(crate) lifetime: Lifetime,
    #[command(flatten)]
    pub(crate) upstream: UpstreamArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

/// Where shoppers connect.
#[derive(Debug, Args)]
pub(crate) struct DoorArgs {
    /// Where shoppers connect in clear text; may be given several times
    #[arg(long, value_name = "ADDR", required_unless_present = "tls")]
    listen: Vec<SocketAddr>,
    /// Where shoppers connect with TLS; may be given several times
    #[arg(long, value_name = "ADDR")]
    tls: Vec<SocketAddr>,
    /// Certificate chain (PEM, leaf first); one for each --key, in the same order
    #[arg(long, value_name = "FILE", requires = "tls")]
    cert: Vec<PathBuf>,
    /// Private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls")]
    key: Vec<PathBuf>,
    /// HTTP/3 too, on the port numbers of --tls (UDP)
    #[arg(long, requires = "tls")]
    http3: bool,
    /// Let a new process listen beside this one, to take over without a refused connection (SO_REUSEPORT)
    #[arg(long)]
    reuse_port: bool,
    /// Sockets that accept side by side on each address
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true)]
    workers: usize,
    /// Take connections only from this load balancer, with a PROXY protocol v2 header: an address or a network; may be given
    /// several times
    #[arg(long = "proxy-protocol-from", value_name = "NET")]
    proxy_protocol_from: Vec<String>,
    #[command(flatten)]
    acme: AcmeArgs,
}

impl DoorArgs {
    pub(crate) fn settled(self) -> Result<Doors, Usage> {
        if self.cert.len() != self.key.len() {
            let (certs, keys) = (self.cert.len(), self.key.len());
            return Err(Usage(format!(
                "{certs} --cert and {keys} --key: give one of each for every certificate"
            )));
        }
        let acme = self.acme.settled(!self.listen.is_empty())?;
        if !self.tls.is_empty() && self.cert.is_empty() && acme.is_none() {
            return Err(Usage(
                "--tls needs a certificate: give --cert and --key, or --acme-directory to get one".to_owned(),
            ));
        }
        if !(1..=WORKERS_MAX).contains(&self.workers) {
            return Err(Usage(format!("--workers must be between 1 and {WORKERS_MAX}")));
        }
        let network = |text: &String| {
            souk_config::doors::network(text).ok_or_else(|| {
                Usage(format!(
                    "--proxy-protocol-from {text:?} is neither an address nor a network such as \"10.0.0.0/8\""
                ))
            })
        };
        let proxy_protocol_from = self.proxy_protocol_from.iter().map(network).collect::<Result<_, _>>()?;
        let mut pairs = self.cert.into_iter().zip(self.key).map(|(cert, key)| CertificateFiles { cert, key });
        let https = (!self.tls.is_empty()).then(|| HttpsDoor {
            addrs: self.tls,
            default: pairs.next(),
            certificates: pairs.collect(),
            http3: self.http3,
            acme,
        });
        Ok(Doors {
            http: self.listen,
            https,
            reuse_port: self.reuse_port,
            workers: self.workers,
            proxy_protocol_from,
        })
    }
}

/// The log of requests, which is off unless it is asked for.
#[derive(Debug, Clone, Args)]
pub(crate) struct AccessArgs {
    /// Write a line for each request to FILE, or - for standard output; a file that is moved away is made anew
    #[arg(long, value_name = "FILE")]
    access_log: Option<PathBuf>,
    /// Form of these lines
    #[arg(long, value_name = "json|common|combined", default_value = "json", requires = "access_log")]
    access_log_format: AccessFormat,
    /// Write queries too, which may hold secrets
    #[arg(long, requires = "access_log")]
    access_log_query: bool,
}

/// The export of traces, which is off unless it is asked for.
#[derive(Debug, Clone, Args)]
pub(crate) struct TraceArgs {
    /// Send traces to an OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318
    #[arg(long, value_name = "URL")]
    otlp: Option<TraceConfig>,
    /// Of a thousand requests, how many are traced
    #[arg(long, value_name = "N", default_value_t = SAMPLED_PER_MILLE_DEFAULT, requires = "otlp",
          value_parser = clap::value_parser!(u16).range(0..=1_000))]
    otlp_per_mille: u16,
}

impl TraceArgs {
    pub(crate) fn config(&self) -> Option<TraceConfig> {
        Some(TraceConfig { sampled_per_mille: self.otlp_per_mille, ..self.otlp.clone()? })
    }
}

impl AccessArgs {
    pub(crate) fn config(&self) -> Option<AccessConfig> {
        let (format, with_query) = (self.access_log_format, self.access_log_query);
        let to = AccessTo::from(self.access_log.clone()?);
        Some(AccessConfig { to, format, with_query })
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  souk serve hello.wasm --listen 127.0.0.1:8080\n  \
                        souk serve shop.wasm --allow-host api.example.com --env LANG=en --config theme=dark\n\n\
                        A component may send requests to the hosts of --allow-host only, and only to public addresses.")]
pub(crate) struct ServeArgs {
    /// A component that exports wasi:http, incoming-handler 0.2 or handler 0.3
    #[arg(value_name = "COMPONENT.wasm")]
    pub(crate) component: PathBuf,
    /// Where clients connect
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// Serve health and metrics here
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Option<SocketAddr>,
    /// Let the component send requests to HOST: api.example.com, api.example.com:8443 or http://api.example.com
    #[arg(long, value_name = "HOST")]
    pub(crate) allow_host: Vec<Grant>,
    /// Let it reach private addresses too, this machine's among them, under the names of --allow-host
    #[arg(long)]
    pub(crate) allow_private: bool,
    /// A variable of its environment
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub(crate) env: Vec<(String, String)>,
    /// A value of its wasi:config
    #[arg(long, value_name = "KEY=VALUE", value_parser = name_and_value)]
    pub(crate) config: Vec<(String, String)>,
    /// Let one instance serve N requests, one after the other [default: a fresh instance for each]
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true)]
    pub(crate) reuse: u32,
    #[command(flatten)]
    pub(crate) limits: ServeLimits,
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(flatten)]
    pub(crate) lifetime: Lifetime,
}

/// What one request may use. The defaults are what a node gives each shop's components; whoever serves a component of
/// their own may want more for it.
#[derive(Debug, Args)]
pub(crate) struct ServeLimits {
    /// Processor time of one request, such as "200 ms" [default: 50 ms]
    #[arg(long, value_name = "TIME", value_parser = souk_config::value::parse_duration)]
    processor: Option<Duration>,
    /// From the head of a request to the end of its answer, such as "1 min" [default: 10 s]
    #[arg(long, value_name = "TIME", value_parser = souk_config::value::parse_duration)]
    timeout: Option<Duration>,
    /// Memory of one instance, up to 4 GiB [default: 64 MiB]
    #[arg(long, value_name = "SIZE", value_parser = souk_config::value::parse_bytes)]
    memory: Option<u64>,
}

impl ServeLimits {
    /// Components have addresses of 32 bits.
    const MEMORY_BYTES_MAX: u64 = 4 << 30;

    pub(crate) fn settled(&self) -> Result<HttpLimits, Usage> {
        let mut limits = HttpLimits::default();
        for (flag, time) in [("--processor", self.processor), ("--timeout", self.timeout)] {
            if time.is_some_and(|time| time.is_zero()) {
                return Err(Usage(format!("{flag} must be more than nothing, such as \"1 s\"")));
            }
        }
        limits.processor_max = self.processor.unwrap_or(limits.processor_max);
        limits.wall_max = self.timeout.unwrap_or(limits.wall_max);
        if let Some(memory) = self.memory {
            if !(1..=Self::MEMORY_BYTES_MAX).contains(&memory) {
                return Err(Usage("--memory must be between 1 B and 4 GiB".to_owned()));
            }
            limits.memory_bytes_max = usize::try_from(memory).unwrap_or(usize::MAX);
            // As many of them at once as of the ordinary ones.
            let defaults = HttpLimits::default();
            let at_once = defaults.memory_all_bytes_max / defaults.memory_bytes_max;
            let all = limits.memory_bytes_max.saturating_mul(at_once);
            limits.memory_all_bytes_max = limits.memory_all_bytes_max.max(all);
        }
        Ok(limits)
    }
}

fn name_and_value(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) =
        text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// What can be asked of each is said beside what it does.
#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// Begin a plugin: a small real one with a test
    New(plugin::new::NewArgs),
    /// Build a project into a checked component
    Build(plugin::build::BuildArgs),
    /// Watch a project, rebuild it at each change, and serve a shop with it on this machine
    Dev(plugin::dev::DevArgs),
    /// Run a project's tests and fixtures, with exact counts of instructions
    Test(plugin::test::TestArgs),
    /// What a hook costs, how that grows with the cart, and where the time goes
    Bench(plugin::bench::BenchArgs),
    /// What a component is and what it can do
    Inspect(plugin::inspect::InspectArgs),
    /// Bring a component to the region, which judges and compiles it
    Push(plugin::push::PushArgs),
    /// Make a release run on every node
    Deploy(plugin::release::DeployArgs),
    /// Show the shop's plugins, or the releases of one
    Releases(plugin::release::ReleasesArgs),
    /// Go back to the release that was active before
    Rollback(plugin::release::RollbackArgs),
    /// Take a plugin out of the chain
    Remove(plugin::release::RemoveArgs),
    /// Run recorded calls again, bit for bit
    Replay(plugin::replay::ReplayArgs),
    /// What a shop's plugins said and did, on every node
    Logs(plugin::logs::LogsArgs),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ToolchainChoice {
    /// The first that works
    #[default]
    Auto,
    /// Only the compiler on the PATH, with its target installed or added by rustup
    Rustup,
    /// Only the compiler of the Debian or Ubuntu archive
    Debian,
}

#[derive(Debug, Args)]
pub(crate) struct SiteArgs {
    /// The region's control address, such as http://127.0.0.1:7080
    #[arg(long, value_name = "URL", env = "SOUK_REGION", global = true)]
    pub(crate) region: Option<url::Url>,
    /// The operator's token, or one of the site's
    #[arg(long, value_name = "TOKEN", env = "SOUK_TOKEN", hide_env_values = true, global = true)]
    pub(crate) token: Option<String>,
    /// The site to change
    #[arg(long, value_name = "SITE", env = "SOUK_SITE", global = true)]
    pub(crate) site: Option<SiteId>,
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: SiteCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SiteCommand {
    /// Create or change the site's settings
    Put(SitePutArgs),
    /// Import a catalogue from CSV or CSV.gz
    Import(ImportArgs),
    /// Push a folder of static files; what is no longer in it is taken down
    Push(PushArgs),
    /// Change the price of one product
    SetPrice(SetPriceArgs),
    /// Show or replace the chain of plugins
    #[command(subcommand)]
    Releases(ReleasesCommand),
    /// Give others access to the site, and take it away
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  souk site put site.json --region http://127.0.0.1:7080")]
pub(crate) struct SitePutArgs {
    /// The settings: at least {"site", "name", "hosts", "currency"}
    #[arg(value_name = "FILE.json")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    souk site import products.csv --region http://127.0.0.1:7080 --site sample\n  \
    souk site import online-retail.csv.gz --map sku=StockCode,title=Description,price=UnitPrice --refused refused.csv\n\n\
    Prices are read exactly: 2.55 becomes 255, and 2.555 is refused rather than rounded. Importing twice changes nothing.\n\
    Where a product occurs in many rows, its price is the one seen most often (of equals the latest), its title likewise.\n\
    Tags and attributes are separated by semicolons: garden;bestseller, colour=blue;size=large.\n\
    Without a column for compare_at, floor or stock, what the region has stays; an empty cell takes compare_at and floor away.\n\
    Rows that are not UTF-8 are read as Windows-1252.\n\
    The command ends with 0 when every readable row is at the region; refused rows are listed, and with --strict they fail it.")]
pub(crate) struct ImportArgs {
    /// The catalogue; the first row names the columns
    #[arg(value_name = "FILE.csv[.gz]")]
    pub(crate) file: PathBuf,
    /// Which column is what: FIELD=COLUMN,… of sku, title, description, price, compare_at, floor, stock, tags,
    /// attributes, image, attr.NAME [default: by the column's name]
    #[arg(long, value_name = "MAP", value_delimiter = ',')]
    pub(crate) map: Vec<ColumnChoice>,
    /// Accept a price of 0 instead of refusing the row
    #[arg(long)]
    pub(crate) allow_free: bool,
    /// Write every refused row with its line and reason to FILE (CSV)
    #[arg(long, value_name = "FILE")]
    pub(crate) refused: Option<PathBuf>,
    /// Read and report only: send nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Fail when any row is refused
    #[arg(long)]
    pub(crate) strict: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  souk site push www --region http://127.0.0.1:7080 --site sample")]
pub(crate) struct PushArgs {
    /// The folder; its index.html answers /
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  souk site set-price TEA-101 31.50 --site sample")]
pub(crate) struct SetPriceArgs {
    #[arg(value_name = "SKU")]
    pub(crate) sku: Sku,
    /// In the site's currency, such as 31.50
    #[arg(value_name = "PRICE", allow_hyphen_values = true)]
    pub(crate) price: String,
    /// The price to strike through beside it, or `none` [default: the one that is there stays, as the floor does]
    #[arg(long, value_name = "PRICE")]
    pub(crate) compare_at: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReleasesCommand {
    /// Show the chain that the region has released
    #[command(after_help = "Example:\n  souk site releases show --site sample")]
    Show,
    /// Replace the whole chain
    #[command(after_help = "Example:\n  souk site releases set chain.json --site sample\n\n\
        FILE.json lists the chain in its order; paths begin in the file's folder:\n  \
        [{\"plugin\": \"pricing\", \"component\": \"pricing.wasm\", \"settings\": {…}, \"on_fault\": \"open\"}]\n\
        `settings` may be a path to a JSON file.")]
    Set {
        #[arg(value_name = "FILE.json")]
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  souk demo\n  souk demo --dir /tmp/souk --keep\n  \
    souk demo --replay online-retail.csv.gz --exit\n  \
    souk demo --replay online-retail.csv.gz --carts 200 --kill-edge --exit --json\n\n\
    Everything runs on 127.0.0.1 and lives in one folder, which is removed at the end unless --keep is given.")]
pub(crate) struct DemoArgs {
    /// Put everything into DIR, which must be empty or absent [default: a new folder under the system's temporary one]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Leave the folder when the demo ends
    #[arg(long)]
    pub(crate) keep: bool,
    /// How many nodes to raise; their plugins compile on the same machine
    #[arg(long, value_name = "N", default_value = "2", value_parser = parse_nodes)]
    pub(crate) nodes: usize,
    /// Keep the region's truth in a PostgreSQL (postgres://USER@HOST/DATABASE, an empty one; password in $SOUK_STORE_PASSWORD)
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// How many processes of the region to raise over the database of --store
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(crate) regions: u8,
    /// First of the ports for HTTP and admin, two of each node [default: free ones]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=65_500))]
    pub(crate) http_base: Option<u16>,
    /// Add the tables of FILE (TOML) to every node's settings, such as [[upstreams]] with a server of your own
    #[arg(long, value_name = "FILE")]
    pub(crate) node_config: Option<PathBuf>,
    /// Add the tables of FILE (TOML) to the settings of each process of the region, such as [events] with a broker of your own
    #[arg(long, value_name = "FILE")]
    pub(crate) region_config: Option<PathBuf>,
    /// The folder with the first-party plugins [default: the one this program was built from, or ./plugins]
    #[arg(long, value_name = "DIR", env = "SOUK_PLUGINS_DIR")]
    pub(crate) plugins: Option<PathBuf>,
    /// Which compiler to build the plugins with
    #[arg(long, value_enum, default_value_t, env = "SOUK_TOOLCHAIN")]
    pub(crate) toolchain: ToolchainChoice,
    /// Print one JSON object when ready (and one with the replay's report) instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) replay: ReplayArgs,
}

fn parse_nodes(text: &str) -> Result<usize, String> {
    let most = crate::demo::POPS.len();
    text.parse()
        .ok()
        .filter(|nodes| (2..=most).contains(nodes))
        .ok_or_else(|| format!("write a number from 2 to {most}"))
}

fn parse_carts(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|carts| *carts > 0).ok_or("write a number from 1")
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Replay")]
pub(crate) struct ReplayArgs {
    /// Turn each invoice of FILE (CSV or CSV.gz) into a shopper
    #[arg(long = "replay", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// At most this many invoices
    #[arg(long, value_name = "N", requires = "file", value_parser = parse_carts)]
    pub(crate) carts: Option<usize>,
    /// Operations a second, or `max`
    #[arg(long, value_name = "RATE", default_value = "max", requires = "file")]
    pub(crate) rate: Rate,
    /// Kill a node and start it again every few seconds
    #[arg(long, requires = "file")]
    pub(crate) kill_edge: bool,
    /// Kill a process of the region in the middle; the only one comes back, of several the others go on without it
    #[arg(long, requires = "file")]
    pub(crate) kill_region: bool,
    /// Cut the nodes from their region for ten seconds in the middle
    #[arg(long, requires = "file")]
    pub(crate) cut_region: bool,
    /// List every refused row in OUT
    #[arg(long, value_name = "OUT", requires = "file")]
    pub(crate) refused: Option<PathBuf>,
    /// Decides who does what
    #[arg(long, value_name = "N", default_value_t = 1, requires = "file")]
    pub(crate) seed: u64,
    /// Record every call of the plugins into DIR, for `souk plugin replay DIR`
    #[arg(long, value_name = "DIR", requires = "file")]
    pub(crate) record: Option<PathBuf>,
    /// End after the replay
    #[arg(long, requires = "file")]
    pub(crate) exit: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Souk::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples_and_no_text_shows_its_escapes() {
        fn visit(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let args = command.get_arguments().filter_map(|arg| arg.get_help());
            for text in args.chain(command.get_about()).map(ToString::to_string) {
                assert!(!text.contains("\\\""), "{path}: {text}");
            }
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(command.has_subcommands() || after.contains("Example"), "{path} shows no example");
            for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
                visit(inner, &path);
            }
        }
        visit(&super::Souk::command(), "");
    }
}

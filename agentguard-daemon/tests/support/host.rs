//! Who governs, in tests of the gateway: everybody, or nobody, by one policy.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use agentguard::audit::Record;
use agentguard::budget::{Event, HostClock, Ledger};
use agentguard::gateway::{Api, Caller, Gateway, GatewayConfig, Host, ProviderConfig};
use agentguard::policy::{LoadOptions, Policy, load_text};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::upstream::{KEY, Upstream};

pub struct Fake {
    pub policy: Mutex<Option<Arc<Policy>>>,
    pub lines: Mutex<Vec<String>>,
}

impl Host for Fake {
    fn agent_of(&self, _cgroup: u64) -> Option<Caller> {
        let policy = self.policy.lock().expect("a policy").clone()?;
        Some(Caller {
            name: "a".into(),
            account: "a".into(),
            session: 1,
            policy,
        })
    }

    fn record(&self, record: Record<'_>, _refused: bool) {
        self.lines
            .lock()
            .expect("lines")
            .push(serde_json::to_string(&record).expect("a line"));
    }

    fn alert(&self) {}
}

pub struct Bench {
    pub upstream: Upstream,
    pub gateway: Gateway,
    pub host: Arc<Fake>,
    pub ledger: Arc<Ledger>,
    pub policy: Arc<Policy>,
    pub folder: tempfile::TempDir,
    _events: UnboundedReceiver<Event>,
}

pub fn policy(budgets: &str) -> Arc<Policy> {
    let text = format!(
        "version: 1\nmodels: {{providers: [openai, anthropic, gemini]}}\nbudgets:\n{budgets}"
    );
    Arc::new(load_text(Path::new("p.yaml"), &text, &LoadOptions::default()).expect("a policy"))
}

impl Bench {
    pub async fn new(budgets: &str) -> Self {
        Self::with(budgets, |_| {}).await
    }

    pub async fn with(budgets: &str, change: impl FnOnce(&mut GatewayConfig)) -> Self {
        let upstream = Upstream::start().await;
        let folder = tempfile::tempdir().expect("a folder");
        let key = folder.path().join("key");
        std::fs::write(&key, KEY).expect("a key");
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("a mode");
        let provider = |api| ProviderConfig {
            api,
            upstream: upstream.url(),
            key_file: Some(key.clone()),
            env_url: None,
            env_key: None,
        };
        let prices = folder.path().join("prices.yaml");
        std::fs::write(&prices, "version: 1\ndate: x\nmodels:\n  - {model: \"m*\", input: 1, cached_input: 0.5, output: 2}\n").expect("prices");
        let mut config = GatewayConfig {
            ca: Some(upstream.ca.clone()),
            prices: Some(prices),
            providers: [
                ("openai", Api::OpenAi),
                ("anthropic", Api::Anthropic),
                ("gemini", Api::Gemini),
            ]
            .map(|(name, api)| (name.to_owned(), provider(api)))
            .into(),
            patience: 3,
            ..GatewayConfig::default()
        };
        change(&mut config);
        let (sender, events) = unbounded_channel();
        let state: PathBuf = folder.path().join("state");
        let ledger = Ledger::open(&state, Box::new(HostClock), sender);
        let policy = policy(budgets);
        let host = Arc::new(Fake {
            policy: Mutex::new(Some(policy.clone())),
            lines: Mutex::default(),
        });
        let gateway = Gateway::start(config, true, ledger.clone(), host.clone())
            .await
            .expect("a gateway");
        Self {
            upstream,
            gateway,
            host,
            ledger,
            policy,
            folder,
            _events: events,
        }
    }

    pub fn url(&self, provider: &str) -> String {
        format!("http://{}/{provider}", self.gateway.address())
    }

    /// Spent of each budget.
    pub fn spent(&self) -> Vec<u64> {
        let report = self.ledger.report("a", 1, &self.policy.limits().budgets);
        report.into_iter().map(|it| it.spent).collect()
    }

    pub fn reserved(&self) -> u64 {
        let report = self.ledger.report("a", 1, &self.policy.limits().budgets);
        report.into_iter().map(|it| it.reserved).sum()
    }

    pub fn lines(&self) -> Vec<serde_json::Value> {
        let lines = self.host.lines.lock().expect("lines");
        lines
            .iter()
            .map(|it| serde_json::from_str(it).expect("JSON"))
            .collect()
    }
}

//! `access revoke`: removes rules that are stored.

use clap::Args;
use storage_client::http::Method;

use super::{Scope, rules};
use crate::api::{self, Api};
use crate::app::App;
use crate::escape;
use crate::failure::{Exit, usage};
use crate::tell;

const EXAMPLES: &str = "\
Examples:
  storage access revoke user-ann-models-cfc3b7d8
  storage access revoke user:ann models
  storage access revoke 'cert:robot-*' models:robots/

By its name, or all that are stored for exactly this principal, keyspace and prefix. Connections that are open go by the rules
that are left from then on.";

/// Removes a rule
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Revoke {
    /// Name of the rule; or its principal, with KEYSPACE behind it
    #[arg(value_name = "NAME|PRINCIPAL")]
    rule: String,
    /// Keyspace and prefix of the rule
    #[arg(value_name = "KEYSPACE[:PREFIX]")]
    scope: Option<Scope>,
    /// Also if nobody could change the rules afterwards
    #[arg(long)]
    force: bool,
}

impl Revoke {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<Exit> {
        if self.rule.is_empty() {
            return Err(usage("which rule? Its name is empty"));
        }
        let api = Api::open(app).await?;
        let Some(scope) = &self.scope else {
            self.remove(&api, &self.rule).await?;
            return Ok(Exit::Done);
        };
        let listed = rules(&api).await?;
        let same = listed
            .iter()
            .filter(|listed| listed.rule.is_for(&self.rule, scope));
        let (stored, configured): (Vec<_>, Vec<_>) =
            same.partition(|listed| listed.stored().is_some());
        for name in stored.iter().filter_map(|listed| listed.stored()) {
            self.remove(&api, name).await?;
            tell(format_args!(
                "removed {}",
                escape::field(name.as_bytes(), false)
            ));
        }
        for listed in &configured {
            let line = listed.line().replace('\t', " ");
            tell(format_args!("still there, to be removed by hand: {line}"));
        }
        if stored.is_empty() && configured.is_empty() {
            let shown = escape::text(self.rule.as_bytes());
            tell(format_args!("there is no rule for {shown} and {scope}"));
        }
        Ok(match stored.is_empty() || !configured.is_empty() {
            true => Exit::Refused,
            false => Exit::Done,
        })
    }

    async fn remove(&self, api: &Api, name: &str) -> anyhow::Result<()> {
        let path = api::forced(api::path(&["rules", name]), self.force);
        api.change(Method::DELETE, &path, None).await?;
        Ok(())
    }
}

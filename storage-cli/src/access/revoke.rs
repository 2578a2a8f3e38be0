//! `access revoke`: removes rules that are stored, or takes permissions away from them.

use clap::Args;
use storage_client::http::Method;

use super::{Listed, Permissions, Scope, check_prefix_form, record, rules};
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
  storage access revoke user:ann models write           # what else it may there stays

By its name, or all that are stored for exactly this principal, keyspace and prefix; of these some permissions, or all. What
was removed is told on stderr. Connections that are open go by the rules that are left from then on. What would leave nobody
who may change the rules is refused, with exit code 1; --force makes it all the same.";

/// Removes a rule
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Revoke {
    /// Name of the rule; or its principal, with KEYSPACE behind it
    #[arg(value_name = "NAME|PRINCIPAL")]
    rule: String,
    /// Keyspace and prefix of the rule (UTF-8 text, no --hex)
    #[arg(value_name = "KEYSPACE[:PREFIX]")]
    scope: Option<Scope>,
    /// Take only these away: read,write,watch,admin or some of them [default: all]
    permissions: Option<Permissions>,
    /// Also if nobody could change the rules afterwards
    #[arg(long)]
    force: bool,
}

impl Revoke {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<Exit> {
        if self.rule.is_empty() {
            return Err(usage("which rule? Its name is empty"));
        }
        if self.scope.is_some() {
            check_prefix_form(app, "rule")?;
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
        let (mut done, mut left) = (0, 0);
        for listed in &stored {
            let Some(name) = listed.stored() else {
                continue;
            };
            let allow = &listed.rule.allow;
            let stays = match &self.permissions {
                Some(taken) => taken.taken_from(allow),
                None => Vec::new(),
            };
            let shown = escape::field(name.as_bytes(), false);
            if stays.len() == allow.len() {
                left += 1;
                continue;
            }
            if stays.is_empty() {
                self.remove(&api, name).await?;
            } else {
                let rule = record(&self.rule, scope, &stays);
                let path = api::path(&["rules", name]);
                api.change_access(Method::PUT, path, Some(&rule), self.force)
                    .await?;
                let stays = escape::text(stays.join(",").as_bytes()).into_owned();
                tell(format_args!("{shown} gives {stays} now"));
            }
            done += 1;
        }
        let gives_it = |listed: &&Listed| {
            let taken = self.permissions.as_ref();
            taken.is_none_or(|taken| {
                taken.taken_from(&listed.rule.allow).len() < listed.rule.allow.len()
            })
        };
        let configured: Vec<_> = configured.into_iter().filter(gives_it).collect();
        for listed in &configured {
            let line = listed.line().replace('\t', " ");
            tell(format_args!("still there, to be removed by hand: {line}"));
        }
        if done == 0 && left > 0 {
            tell(format_args!("no stored rule gave it"));
        }
        if stored.is_empty() && configured.is_empty() {
            let shown = escape::text(self.rule.as_bytes());
            tell(format_args!("there is no rule for {shown} and {scope}"));
        }
        Ok(match done == 0 || !configured.is_empty() {
            true => Exit::Refused,
            false => Exit::Done,
        })
    }

    async fn remove(&self, api: &Api, name: &str) -> anyhow::Result<()> {
        let path = api::path(&["rules", name]);
        api.change_access(Method::DELETE, path, None, self.force)
            .await?;
        let shown = escape::field(name.as_bytes(), false);
        tell(format_args!("removed {shown}"));
        Ok(())
    }
}

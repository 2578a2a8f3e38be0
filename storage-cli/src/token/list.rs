//! `token list`: the tokens that there are, and whether they are good; all of them for administrators, one's own for others.

use clap::Args;
use serde::Deserialize;

use crate::access::Rule;
use crate::api::{self, Api};
use crate::app::App;
use crate::escape;
use crate::failure::Exit;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  storage token list
  storage --json token list

Prints ID<TAB>PRINCIPAL<TAB>NAME<TAB>ISSUED<TAB>EXPIRES<TAB>GRANTS<TAB>STATE lines; the tokens themselves are kept nowhere. Without
grants a token has \"all\" that its principal has. The state is \"good\", or why it is not: the user is disabled, say. Of a token
that was minted with another one, <TAB>PARENT follows, the id of that one: it may nothing that its parent may not, whatever
its own grants say.";

/// Prints the tokens, and whether they are good
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct List {}

#[derive(Deserialize)]
struct Listed {
    id: String,
    principal: String,
    name: Option<String>,
    #[serde(default)]
    grants: Vec<Rule>,
    issued: u64,
    expires: u64,
    /// Why it is good for nothing, or not for now.
    ended: Option<String>,
    /// The token that it was minted with.
    parent: Option<String>,
}

impl List {
    pub(super) async fn run(self, app: &App, out: &mut Output) -> anyhow::Result<Exit> {
        let answer = Api::open(app).await?.ask(&api::path(&["tokens"])).await?;
        for token in api::list(&answer, "tokens")? {
            match app.json() {
                true => out.line(&escape::json_value(token))?,
                false => out.line(&api::read::<Listed>(token)?.line())?,
            }
        }
        Ok(Exit::Done)
    }
}

impl Listed {
    fn line(&self) -> String {
        let grants: Vec<String> = self.grants.iter().map(Rule::as_grant).collect();
        let grants = grants
            .iter()
            .map(|grant| escape::field(grant.as_bytes(), false));
        let grants: Vec<_> = grants.collect();
        let mut columns = vec![
            escape::text(self.id.as_bytes()),
            escape::text(self.principal.as_bytes()),
            escape::text(self.name.as_deref().unwrap_or_default().as_bytes()),
            api::date(self.issued).into(),
            api::date(self.expires).into(),
            match grants.is_empty() {
                true => "all".into(),
                false => grants.join(" ").into(),
            },
            escape::text(self.ended.as_deref().unwrap_or("good").as_bytes()),
        ];
        columns.extend(self.parent.iter().map(|id| escape::text(id.as_bytes())));
        columns.join("\t")
    }
}

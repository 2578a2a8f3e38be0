//! `room list`.

use clap::Args;

use super::connect;
use crate::app::App;
use crate::escape;
use crate::failure::Exit;
use crate::json::Object;
use crate::output::Output;

/// Rooms that are read at once.
const PAGE: u64 = 1_000;

/// Prints ID<TAB>TYPE<TAB>OBJECT lines
#[derive(Debug, Args)]
pub(super) struct List {
    /// Stop after N rooms
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

impl List {
    pub(super) async fn run(
        self,
        app: &App,
        out: &mut Output,
        prefix: String,
    ) -> anyhow::Result<Exit> {
        let rooms = connect(app, prefix).await?;
        let (mut left, mut after) = (self.limit.unwrap_or(u64::MAX), None);
        while left > 0 {
            let wanted = left.min(PAGE);
            let page = rooms.list(after.as_ref(), wanted).await?;
            for (key, id) in &page {
                let id = id.to_string();
                let line = match app.json() {
                    true => Object::new()
                        .text("id", &id)
                        .text("type", key.kind())
                        .text("object", key.object())
                        .finish(),
                    false => {
                        let object = escape::text(key.object().as_bytes());
                        format!("{id}\t{}\t{object}", key.kind())
                    }
                };
                out.line(&line)?;
            }
            out.flush()?;
            left -= page.len() as u64;
            if (page.len() as u64) < wanted {
                break;
            }
            after = page.into_iter().next_back().map(|(key, _)| key);
        }
        Ok(Exit::Done)
    }
}

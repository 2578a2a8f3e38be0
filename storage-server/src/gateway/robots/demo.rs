//! The user that triggers jobs in a demonstration, for `serve --demo`.

use super::house::House;
use crate::gateway::ServerHandle;

const USER: &str = "studio";
const PASSWORD: &str = "st0d10";

/// Makes it, and lets robots in without a token.
pub(super) async fn make(house: &House, server: &ServerHandle) -> Result<Vec<String>, String> {
    house.open();
    let mut made = vec!["robots are let in without a token".to_owned()];
    if server.demo_user(USER, PASSWORD).await? {
        made.push(format!("user {USER} with the password {PASSWORD}"));
    }
    Ok(made)
}

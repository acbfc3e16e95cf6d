//! `doctor`: asks the node what is wrong, or looks at the machine where no node runs.

use std::process::ExitCode;

use reqwest::Method;

use super::{Context, http};
use crate::doctor::{Check, Level};

/// Prints all checks. The exit code says whether something needs doing.
pub(super) async fn doctor(context: &Context) -> anyhow::Result<ExitCode> {
    let asked = async { context.api()?.json::<Vec<Check>>(Method::GET, &["doctor"]).await };
    let checks = match asked.await {
        Err(error) if http::code_of(&error) == "no_node" => {
            crate::doctor::of_machine(&context.home, &context.load_config(&[])?.config)
        }
        asked => asked?,
    };
    context.print(&checks, |checks, out| {
        for check in checks {
            let level = match check.level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Problem => "PROBLEM",
            };
            line!(out, "{level:<8}  {:<15} {}", check.name, check.finding);
            if let Some(advice) = &check.advice {
                line!(out, "{:<8}  {:<15} -> {advice}", "", "");
            }
        }
    })?;
    let is_bad = checks.iter().any(|check| check.level == Level::Problem);
    Ok(if is_bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

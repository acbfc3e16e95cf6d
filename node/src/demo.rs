//! demo
/// args
#[derive(Debug, clap::Args)]
pub struct DemoArgs {}
/// run
pub async fn run(_args: DemoArgs, _json: bool) -> anyhow::Result<()> {
    Ok(())
}

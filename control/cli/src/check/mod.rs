//! Whether a cluster can run Seine (`--pre`), and whether the Seine that it runs works.
//!
//! What a node's kernel can do, only the node knows: `seine-agent check` asks it, and an agent that
//! doesn't become ready says why in its log. Here is what the API server knows.

mod before;
mod installed;

use crate::{cluster::Cluster, finding::Findings};

/// Everything that can be asked before an installation.
pub async fn before(cluster: &Cluster) -> anyhow::Result<Findings> {
    let mut found = Findings::default();
    before::server(cluster, &mut found).await?;
    before::permissions(cluster, &mut found).await?;
    before::nodes(cluster, &mut found).await?;
    before::clocks(cluster, &mut found).await?;
    before::namespace(cluster, &mut found).await?;
    before::other_networks(cluster, &mut found).await?;
    before::network_policies(cluster, &mut found).await?;
    Ok(found)
}

/// Everything that can be asked of an installation.
pub async fn installed(cluster: &Cluster) -> anyhow::Result<Findings> {
    let mut found = Findings::default();
    before::server(cluster, &mut found).await?;
    before::nodes(cluster, &mut found).await?;
    before::clocks(cluster, &mut found).await?;
    before::other_networks(cluster, &mut found).await?;
    installed::kinds(cluster, &mut found).await?;
    installed::components(cluster, &mut found).await?;
    installed::control(cluster, &mut found).await?;
    installed::nodes(cluster, &mut found).await?;
    installed::objects(cluster, &mut found).await?;
    Ok(found)
}

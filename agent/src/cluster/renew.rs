//! The next certificates, in time: the client's, and the kubelet port's.
//!
//! Between 70 and 90 % of a certificate's life, each board at its own moment, as the kubelet. One that ended while the
//! board was off is renewed in the same way: TLS proves that we have the old key, and the control plane decides.

use super::backoff::spread;
use super::client::{Client, ClientError, Collection};
use super::clock::Clock;
use super::credentials::{Certificate, Credentials, PENDING, Validity};
use super::signing::{self, SigningError};
use k8s_openapi::api::core::v1::Node;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// Between looks at what is due: clocks are set, addresses change, boards sleep.
const LOOK: Duration = Duration::from_secs(1800);
/// After a failure: once to twice this, and longer each time, up to [`LOOK`].
const RETRY: Duration = Duration::from_secs(5);
/// For an approval by hand.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the task needs.
pub(crate) struct Renewal {
    pub client: Client,
    pub credentials: Credentials,
    pub clock: Arc<Clock>,
    pub node: String,
}

impl Renewal {
    /// For ever.
    pub(crate) async fn run(self) {
        let share = 0.7 + 0.2 * (spread(Duration::from_secs(1)).as_secs_f64() - 1.0);
        let mut failures = 0;
        loop {
            let done = match self.client_certificate(share).await {
                Ok(()) => self.serving_certificate(share).await,
                Err(error) => Err(error),
            };
            let wait = match done {
                Ok(told) => {
                    failures = 0;
                    if told { LOOK } else { RETRY }
                }
                Err(error) => {
                    warn!(%error, "a certificate was not renewed; tried again");
                    failures += 1;
                    RETRY.saturating_mul(1 << u32::min(failures, 10)).min(LOOK)
                }
            };
            tokio::time::sleep(spread(wait)).await;
        }
    }

    async fn client_certificate(&self, share: f64) -> Result<(), SigningError> {
        let Some(current) = self.credentials.client() else { return Ok(()) };
        if !is_due(current.validity, share, self.clock.now()) {
            return Ok(());
        }
        // Kept until its certificate is here: when an answer is lost, the same key asks again.
        let key = self.credentials.key(PENDING)?;
        let certificate =
            signing::sign(&self.client, signing::CLIENT, &key, &self.node, &[], PATIENCE).await?;
        self.credentials.renew_client(&certificate, &key)?;
        info!("the client certificate is renewed");
        Ok(())
    }

    /// False while the API does not know where this node is: nobody dials it then.
    async fn serving_certificate(&self, share: f64) -> Result<bool, SigningError> {
        let names = match self.client.get::<Node>(&Collection::NODES.object("", &self.node)).await {
            Ok(node) => names(&self.node, &node),
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let current = self.credentials.serving();
        let good = |current: &Certificate| {
            !is_due(current.validity, share, self.clock.now())
                && names.iter().all(|name| current.names.contains(name))
        };
        if names.len() < 2 {
            return Ok(false);
        }
        if current.as_ref().is_some_and(good) {
            return Ok(true);
        }
        let key = self.credentials.key("serving.key")?;
        let signed = signing::sign(&self.client, signing::SERVING, &key, &self.node, &names, PATIENCE).await;
        match signed {
            Ok(certificate) => self.credentials.renew_serving(&certificate, &key)?,
            // Upstream's control plane leaves it to an administrator: there is no hurry.
            Err(SigningError::Pending { name, .. }) => {
                info!(name, "the serving certificate waits for its approval")
            }
            Err(SigningError::Client(ClientError::Status(status))) => {
                info!(message = status.message, "no serving certificate");
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

/// The node's own name, and its addresses as the API has them.
fn names(node_name: &str, node: &Node) -> Vec<String> {
    let mut names = vec![node_name.to_string()];
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    for address in addresses.into_iter().flatten() {
        if !names.contains(&address.address) {
            names.push(address.address.clone());
        }
    }
    names
}

fn is_due(validity: Validity, share: f64, now: u64) -> bool {
    let life = Duration::from_secs(validity.until.saturating_sub(validity.from));
    now >= validity.from.saturating_add(life.mul_f64(share).as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_before_it_ends_and_after() {
        let validity = Validity { from: 1000, until: 2000 };
        let check = |now, expected| assert_eq!(is_due(validity, 0.8, now), expected, "{now}");
        check(0, false);
        check(1799, false);
        check(1800, true);
        check(5000, true);
    }
}

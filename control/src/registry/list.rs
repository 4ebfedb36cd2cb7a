//! Lists: by pages, as of a version, selected.

use super::options::{At, Continue, ListOptions};
use super::{PAGE, Registry, Target, load, refused};
use crate::object;
use crate::storage::{ListQuery, Page, Revision, StorageError};
use coracle_api::status::StatusError;
use serde_json::{Map, Value, json};

/// What clients are told whose continue token is too old.
const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.";

/// Objects, and what the list says about itself.
#[derive(Clone, Debug)]
pub struct Listed {
    /// In order of namespace and name.
    pub items: Vec<Value>,
    /// As of when.
    pub revision: Revision,
    /// Where to go on.
    pub next: Option<Continue>,
    /// How many follow; unknown when only some are wanted.
    pub remaining: Option<usize>,
}

impl Registry {
    /// Objects of a kind, in a namespace or in all.
    ///
    /// # Errors
    /// 410 when the version is forgotten, 504 when it is in the future.
    pub async fn list(&self, target: &Target, options: &ListOptions) -> Result<Listed, StatusError> {
        let prefix = target.resource.prefix(&target.namespace);
        let at = match (&options.after, options.at) {
            (Some(after), _) => Some(after.revision),
            (None, At::Exact(revision)) => Some(revision),
            (None, At::Now) => None,
            (None, At::NotOlderThan(asked)) => {
                let current = self.storage.revision().await.map_err(refused)?;
                if asked > current {
                    return Err(refused(StorageError::Future { asked, current }));
                }
                None
            }
        };
        let selective = !options.selector.is_empty();
        let wanted = if options.limit == 0 { usize::MAX } else { options.limit };
        let mut query = ListQuery {
            after: options.after.as_ref().map(|after| format!("{prefix}{}", after.key)),
            limit: match (options.limit, selective) {
                (0, _) => 0,
                (limit, false) => limit,
                (limit, true) => limit.max(PAGE),
            },
            at,
            prefix,
        };
        let mut items = Vec::new();
        loop {
            let page = self.page(&query, options.after.is_some()).await?;
            query.at = Some(page.revision);
            let mut last = None;
            let entries = page.entries.len();
            for (read, entry) in page.entries.iter().enumerate() {
                last = Some(entry.key.to_string());
                if !options.selector.may_match(&entry.value) {
                    continue;
                }
                let object = load(target.resource, entry)?;
                if options.selector.matches(&object) {
                    items.push(object);
                    if items.len() == wanted {
                        let remaining = page.remaining + entries - read - 1;
                        let next = (remaining > 0).then(|| Continue {
                            revision: page.revision,
                            key: entry.key[query.prefix.len()..].to_string(),
                        });
                        let remaining = (!selective && remaining > 0).then_some(remaining);
                        return Ok(Listed { items, revision: page.revision, next, remaining });
                    }
                }
            }
            if page.remaining == 0 || last.is_none() {
                return Ok(Listed { items, revision: page.revision, next: None, remaining: None });
            }
            query.after = last;
        }
    }

    async fn page(&self, query: &ListQuery, continued: bool) -> Result<Page, StatusError> {
        self.storage.list(query).await.map_err(|error| match error {
            StorageError::Compacted { .. } if continued => StatusError::expired(CONTINUE_EXPIRED),
            error => refused(error),
        })
    }
}

impl Listed {
    /// `PodList`.
    pub fn into_object(self, target: &Target) -> Value {
        let mut metadata = Map::new();
        metadata.insert("resourceVersion".into(), self.revision.to_string().into());
        if let Some(next) = &self.next {
            metadata.insert("continue".into(), next.token().into());
        }
        if let Some(remaining) = self.remaining {
            metadata.insert("remainingItemCount".into(), remaining.into());
        }
        let items: Vec<Value> = self
            .items
            .into_iter()
            .map(|mut item| {
                // The list says it for all of them.
                object::remove(&mut item, "apiVersion");
                object::remove(&mut item, "kind");
                item
            })
            .collect();
        json!({
            "apiVersion": target.resource.api_version(),
            "kind": format!("{}List", target.resource.kind),
            "metadata": metadata,
            "items": items,
        })
    }
}

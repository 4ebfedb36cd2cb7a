//! What waits for ConfigMaps, Secrets and tokens, and how they come in when they change.
//!
//! Nothing here has a period or a back-off: an object that comes is a changed fact, and the next plan goes on at once.
//! The kubelet tries again instead, and says so each time; here it is said once for each reason.

use super::{BACKOFF_FIRST, Planner, Role};
use crate::ActionKey;
use crate::action::{Action, EventType};
use crate::history::Told;

impl Planner<'_> {
    /// Whether a volume cannot be set up, which is told.
    pub(super) fn lacks_volumes(&mut self) -> bool {
        let unmet = &self.seen.unmet.volumes;
        for (volume, message) in unmet {
            if let Some(message) = message {
                self.tell_of_volume(
                    volume,
                    format!("MountVolume.SetUp failed for volume {volume:?} : {message}"),
                );
            }
        }
        self.history.told.retain(|told, _| match told {
            Told::Volume(volume) => unmet.contains_key(volume) || volume.is_empty(),
            Told::Container(_) | Told::Resize => true,
        });
        !unmet.is_empty()
    }

    fn tell_of_volume(&mut self, volume: &str, message: String) {
        let told = Told::Volume(volume.into());
        if self.history.told.insert(told, message.clone()).as_ref() != Some(&message) {
            self.event(EventType::Warning, "FailedMount", message, None);
        }
    }

    /// Whether a container's variables cannot be had, which is told.
    pub(super) fn lacks_variables(&mut self, name: &str, role: Role) -> bool {
        let told = Told::Container(name.into());
        let Some(message) = self.seen.unmet.containers.get(name) else {
            self.history.told.remove(&told);
            return false;
        };
        if let Some(message) = message
            && self.history.told.insert(told, message.clone()).as_ref() != Some(message)
        {
            self.event(EventType::Warning, "Failed", format!("Error: {message}"), Some((name, role)));
        }
        true
    }

    /// What a running pod reads from its volumes follows the objects. One that is gone stays as it was.
    pub(super) fn update_volumes(&mut self) {
        if self.lacks_volumes() || !self.seen.volumes_behind {
            return;
        }
        if let Some(failure) = self.seen.failures.get(&ActionKey::Volumes).cloned() {
            self.tell_of_volume("", failure.message);
            let again = self.after(&failure.at, BACKOFF_FIRST);
            if !self.passed(again) {
                return;
            }
        } else {
            self.history.told.remove(&Told::Volume(String::new()));
        }
        self.order(Action::UpdateVolumes);
    }
}

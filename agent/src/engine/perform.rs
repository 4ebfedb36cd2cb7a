//! Actions as tasks: each calls the board once and answers with one message.

use super::Message;
use coracle_pod::action::Action;
use coracle_pod::objects::Objects;
use coracle_pod::observed::{ImageState, InstanceId, ProbeKey, Reason, Resized, Stamp, Verdict};
use coracle_pod::resize;
use coracle_pod::spec::ContainerSpec;
use coracle_pod::{ActionKey, PodSpec};
use coracle_runtime::board::{ActionError, Board};
use coracle_runtime::container::About;
use coracle_runtime::image::Credential;
use coracle_runtime::probe;
use coracle_runtime::shim_client::{ShimClient, ShimEvent};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::mpsc;

/// How an action ended.
#[derive(Debug)]
pub(crate) enum Done {
    Sandbox {
        ips: Vec<IpAddr>,
        shim: ShimClient,
        events: mpsc::Receiver<ShimEvent>,
        files: u64,
    },
    /// Its volumes hold what was wanted as of this count.
    Volumes {
        files: u64,
    },
    /// The cgroups are as allocated.
    Resized(Resized),
    Stopped,
    Removed,
    Image {
        image: String,
        state: ImageState,
    },
    Started {
        instance: InstanceId,
        started: Stamp,
        about: About,
    },
    Forgotten {
        instance: InstanceId,
    },
    Signalled,
    Probed {
        key: ProbeKey,
        verdict: Verdict,
    },
    /// `residue`: something of the pod may be left on the board.
    Failed {
        reason: Reason,
        message: String,
        residue: bool,
    },
}

/// What an action needs of the pod at the time it starts.
pub(super) struct Task {
    pub board: Arc<Board>,
    /// With the resources that it was granted.
    pub spec: Arc<PodSpec>,
    pub shim: Option<ShimClient>,
    pub ips: Vec<IpAddr>,
    /// For a pull: those of the pod's `imagePullSecrets`.
    pub credentials: Vec<Credential>,
    /// For volumes and variables.
    pub objects: Arc<Objects>,
    /// As of which count of wanted files.
    pub files: u64,
    pub inbox: mpsc::Sender<Message>,
    pub running: Vec<InstanceId>,
}

impl Task {
    pub(super) async fn run(self, action: Action, key: ActionKey) {
        let residue = matches!(action, Action::CreateSandbox | Action::StopSandbox | Action::RemovePod);
        let result = match self.perform(action).await {
            Ok(done) => done,
            Err(ActionError { reason, message }) => Done::Failed { reason, message, residue },
        };
        let message = Message::Done { uid: self.spec.uid.clone(), key, result };
        if self.inbox.send(message).await.is_err() {
            tracing::debug!("an action ended after the engine");
        }
    }

    async fn perform(&self, action: Action) -> Result<Done, ActionError> {
        let (board, pod) = (&self.board, &self.spec);
        match action {
            Action::PullImage { image, always: _ } => {
                let state = board.pull(&image, &self.credentials).await?;
                Ok(Done::Image { image, state })
            }
            Action::CreateSandbox => {
                let (ips, shim, events) = board.create_sandbox(pod, &self.objects).await?;
                Ok(Done::Sandbox { ips, shim, events, files: self.files })
            }
            Action::UpdateVolumes => {
                board.update_volumes(pod, &self.objects).await?;
                Ok(Done::Volumes { files: self.files })
            }
            Action::Resize { instances } => {
                board.resize(pod, &instances).await?;
                Ok(Done::Resized(Resized { allocation: resize::desired(pod), instances }))
            }
            Action::StopSandbox => board.stop_sandbox(pod).await.map(|()| Done::Stopped),
            Action::RemovePod => board.remove_pod(&pod.uid).await.map(|()| Done::Removed),
            Action::StartContainer { instance } => {
                let container = self.container(&instance.container)?;
                let shim = self.shim()?;
                let (started, about) =
                    board.start(pod, container, &instance, shim, &self.ips, &self.objects).await?;
                Ok(Done::Started { instance, started, about })
            }
            Action::Signal { instance, signal } => {
                board.signal(pod, &instance, signal, self.shim.as_ref()).await.map(|()| Done::Signalled)
            }
            Action::RemoveContainer { instance, log } => {
                board.remove_container(pod, &instance, log, self.shim.as_ref()).await?;
                Ok(Done::Forgotten { instance })
            }
            Action::Probe { key } => {
                let container = self.container(&key.instance.container)?;
                let verdict = if self.running.contains(&key.instance) {
                    let target = probe::Target { pod, container, instance: &key.instance, ips: &self.ips };
                    probe::run(board, &target, key.kind, self.shim()?).await
                } else {
                    Verdict::Failure("the container does not run".into())
                };
                Ok(Done::Probed { key, verdict })
            }
        }
    }

    fn container(&self, name: &str) -> Result<&ContainerSpec, ActionError> {
        let mut all = self.spec.all_containers();
        all.find(|c| c.name == name).ok_or_else(|| ActionError {
            reason: Reason::CreateContainerConfigError,
            message: format!("the pod has no container {name}"),
        })
    }

    fn shim(&self) -> Result<&ShimClient, ActionError> {
        self.shim.as_ref().ok_or_else(|| ActionError {
            reason: Reason::CreateContainerError,
            message: "the pod's shim does not answer".into(),
        })
    }
}

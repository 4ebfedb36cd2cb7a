//! Volumes of a pod, and where its containers mount them.

use super::field::{Errors, Path, Problem, Shown};
use super::{names, projected, resources};
use crate::spec::{HostPathType, Medium, Mount, Propagation, Volume, VolumeSource};
use k8s_openapi::api::core::v1;
use std::collections::BTreeSet;

pub(crate) fn volumes(errors: &mut Errors, path: &Path, wire: Option<&[v1::Volume]>) -> Vec<Volume> {
    let mut found: Vec<Volume> = Vec::new();
    for (index, wire) in wire.into_iter().flatten().enumerate() {
        let path = path.index(index);
        names::label(errors, &path.child("name"), &wire.name);
        if found.iter().any(|known| known.name == wire.name) {
            errors.duplicate(&path.child("name"), &wire.name);
        }
        let source = source(errors, &path, wire);
        found.push(Volume { name: wire.name.clone(), source });
    }
    found
}

/// What the volume is made of. Spelt out field by field: a source that a new version of the API brings does
/// not compile until it is either honoured or refused here.
fn source(errors: &mut Errors, path: &Path, wire: &v1::Volume) -> VolumeSource {
    let v1::Volume {
        name: _,
        aws_elastic_block_store,
        azure_disk,
        azure_file,
        cephfs,
        cinder,
        config_map,
        csi,
        downward_api,
        empty_dir,
        ephemeral,
        fc,
        flex_volume,
        flocker,
        gce_persistent_disk,
        git_repo,
        glusterfs,
        host_path,
        image,
        iscsi,
        nfs,
        persistent_volume_claim,
        photon_persistent_disk,
        portworx_volume,
        projected,
        quobyte,
        rbd,
        scale_io,
        secret,
        storageos,
        vsphere_volume,
    } = wire;
    for (present, name) in [
        (aws_elastic_block_store.is_some(), "awsElasticBlockStore"),
        (azure_disk.is_some(), "azureDisk"),
        (azure_file.is_some(), "azureFile"),
        (cephfs.is_some(), "cephfs"),
        (cinder.is_some(), "cinder"),
        (csi.is_some(), "csi"),
        (ephemeral.is_some(), "ephemeral"),
        (fc.is_some(), "fc"),
        (flex_volume.is_some(), "flexVolume"),
        (flocker.is_some(), "flocker"),
        (gce_persistent_disk.is_some(), "gcePersistentDisk"),
        (git_repo.is_some(), "gitRepo"),
        (glusterfs.is_some(), "glusterfs"),
        (image.is_some(), "image"),
        (iscsi.is_some(), "iscsi"),
        (nfs.is_some(), "nfs"),
        (persistent_volume_claim.is_some(), "persistentVolumeClaim"),
        (photon_persistent_disk.is_some(), "photonPersistentDisk"),
        (portworx_volume.is_some(), "portworxVolume"),
        (quobyte.is_some(), "quobyte"),
        (rbd.is_some(), "rbd"),
        (scale_io.is_some(), "scaleIO"),
        (storageos.is_some(), "storageos"),
        (vsphere_volume.is_some(), "vsphereVolume"),
    ] {
        errors.unsupported(present, &path.child(name));
    }
    let mut only = None;
    for (present, name) in [
        (config_map.is_some(), "configMap"),
        (downward_api.is_some(), "downwardAPI"),
        (empty_dir.is_some(), "emptyDir"),
        (host_path.is_some(), "hostPath"),
        (projected.is_some(), "projected"),
        (secret.is_some(), "secret"),
    ] {
        if present && only.replace(name).is_some() {
            errors.forbidden(&path.child(name), "may not specify more than 1 volume type");
        }
    }
    if let Some(host_path) = host_path {
        return host_path_source(errors, &path.child("hostPath"), host_path);
    }
    if let Some(wire) = config_map {
        return VolumeSource::Projected(projected::config_map(errors, &path.child("configMap"), wire));
    }
    if let Some(wire) = secret {
        return VolumeSource::Projected(projected::secret(errors, &path.child("secret"), wire));
    }
    if let Some(wire) = downward_api {
        return VolumeSource::Projected(projected::downward_api(errors, &path.child("downwardAPI"), wire));
    }
    if let Some(wire) = projected {
        return VolumeSource::Projected(projected::all(errors, &path.child("projected"), wire));
    }
    // SetDefaults_Volume: a volume without a source is an emptyDir.
    let empty_dir = empty_dir.clone().unwrap_or_default();
    empty_dir_source(errors, &path.child("emptyDir"), &empty_dir)
}

fn empty_dir_source(errors: &mut Errors, path: &Path, wire: &v1::EmptyDirVolumeSource) -> VolumeSource {
    let media = [("", Medium::Disk), ("Memory", Medium::Memory)];
    let medium = errors.one_of(&path.child("medium"), wire.medium.as_deref(), Medium::Disk, &media);
    let limit = wire
        .size_limit
        .as_ref()
        .and_then(|limit| resources::quantity(errors, &path.child("sizeLimit"), limit))
        .and_then(|limit| u64::try_from(limit.bytes()).ok())
        // The kubelet takes zero as no limit.
        .filter(|limit| *limit > 0);
    VolumeSource::EmptyDir { medium, size_limit_bytes: limit }
}

fn host_path_source(errors: &mut Errors, path: &Path, wire: &v1::HostPathVolumeSource) -> VolumeSource {
    let value_path = path.child("path");
    if wire.path.is_empty() {
        errors.required(&value_path, "");
    } else if !wire.path.starts_with('/') {
        errors.invalid(&value_path, &wire.path, "must be an absolute path");
    }
    names::no_backsteps(errors, &value_path, &wire.path);
    let kinds = [
        ("DirectoryOrCreate", HostPathType::DirectoryOrCreate),
        ("Directory", HostPathType::Directory),
        ("FileOrCreate", HostPathType::FileOrCreate),
        ("File", HostPathType::File),
        ("Socket", HostPathType::Socket),
        ("CharDevice", HostPathType::CharDevice),
        ("BlockDevice", HostPathType::BlockDevice),
    ];
    let kind = errors.one_of(&path.child("type"), wire.type_.as_deref(), HostPathType::Unset, &kinds);
    VolumeSource::HostPath { path: wire.path.clone(), kind }
}

pub(crate) fn mounts(
    errors: &mut Errors,
    path: &Path,
    wire: Option<&[v1::VolumeMount]>,
    volumes: &[Volume],
    privileged: bool,
) -> Vec<Mount> {
    let mut taken = BTreeSet::new();
    let mut found = Vec::new();
    for (index, wire) in wire.into_iter().flatten().enumerate() {
        let path = path.index(index);
        let v1::VolumeMount {
            mount_path,
            mount_propagation,
            name,
            read_only,
            recursive_read_only,
            sub_path,
            sub_path_expr,
        } = wire;
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        } else if !volumes.iter().any(|volume| volume.name == *name) {
            errors.push(&path.child("name"), Problem::NotFound(name.shown()));
        }
        let mount_path_path = path.child("mountPath");
        if mount_path.is_empty() {
            errors.required(&mount_path_path, "");
        } else if !taken.insert(mount_path.clone()) {
            errors.invalid(&mount_path_path, mount_path, "must be unique");
        }
        // Upstream leaves these two to the runtime, which then fails; here they are refused at once.
        if mount_path.split('/').any(|step| step == "..") {
            errors.invalid(&mount_path_path, mount_path, "must not contain '..'");
        }
        names::no_nul(errors, &mount_path_path, mount_path);
        let sub_path = sub_path.clone().filter(|sub_path| !sub_path.is_empty());
        if let Some(sub_path) = &sub_path {
            names::descending(errors, &path.child("subPath"), sub_path);
        }
        let expression = sub_path_expr.as_deref().unwrap_or_default();
        errors.unsupported(!expression.is_empty(), &path.child("subPathExpr"));
        let recursive = recursive_read_only.as_deref().unwrap_or("Disabled");
        errors.unsupported(recursive != "Disabled", &path.child("recursiveReadOnly"));
        let propagation_path = path.child("mountPropagation");
        let propagation = errors.one_of(
            &propagation_path,
            mount_propagation.as_deref(),
            Propagation::None,
            &[
                ("Bidirectional", Propagation::Bidirectional),
                ("HostToContainer", Propagation::HostToContainer),
                ("None", Propagation::None),
            ],
        );
        if propagation == Propagation::Bidirectional && !privileged {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errors.forbidden(&propagation_path, detail);
        }
        found.push(Mount {
            volume: name.clone(),
            mount_path: mount_path.clone(),
            read_only: read_only.unwrap_or(false),
            sub_path,
            propagation,
        });
    }
    found
}

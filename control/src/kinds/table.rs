//! The table. One row a kind and version, in the order in which discovery shows groups.

use super::{
    BINDING, CORE, autoscaler, classes, cluster, config, endpoints, event, pod, quota, service, workloads,
};
use crate::registry::{
    Name, PROXIED, Part, Resource, SCALE, Stored, Subresource, Verbs, cluster as of_cluster, connect,
    namespaced as of_namespace, part, status,
};

const ALL: &[&str] = &["all"];
const APPS: (&str, &str) = ("apps", "v1");
const BATCH: (&str, &str) = ("batch", "v1");
const AUTHENTICATION: (&str, &str) = ("authentication.k8s.io", "v1");
const AUTHORIZATION: (&str, &str) = ("authorization.k8s.io", "v1");
const RBAC: (&str, &str) = ("rbac.authorization.k8s.io", "v1");
const NETWORKING: (&str, &str) = ("networking.k8s.io", "v1");

/// Of streams into a pod.
const OPENED: &[&str] = &["create", "get"];

const EVICTION: Subresource = Subresource {
    name: "eviction",
    what: Part::Eviction,
    verbs: &["create"],
    kind: "Eviction",
    of: Some(("policy", "v1")),
};

const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

const METRICS: (&str, &str) = ("metrics.k8s.io", "v1beta1");

/// Kinds that are computed when they are asked for: discovery tells of them, the registry does not know them.
pub static COMPUTED: &[Resource] = &[
    Resource { verbs: Verbs::ReadOnly, ..of_cluster(METRICS, "NodeMetrics", "nodes", "") },
    Resource { verbs: Verbs::ReadOnly, ..of_namespace(METRICS, "PodMetrics", "pods", "") },
];

/// Every kind that is stored and served.
pub static RESOURCES: &[Resource] = &[
    Resource {
        short_names: &["cm"],
        validate: config::validate_config_map,
        validate_update: config::update_config_map,
        ..of_namespace(CORE, "ConfigMap", "configmaps", "configmap")
    },
    Resource {
        short_names: &["ep"],
        default: endpoints::default_endpoints,
        validate: endpoints::validate_endpoints,
        ..of_namespace(CORE, "Endpoints", "endpoints", "endpoints")
    },
    Resource {
        short_names: &["ev"],
        selectable: EVENT_FIELDS,
        default: cluster::default_event,
        validate: cluster::validate_event,
        ..of_namespace(CORE, "Event", "events", "event")
    },
    Resource {
        short_names: &["limits"],
        default: cluster::default_limit_range,
        ..of_namespace(CORE, "LimitRange", "limitranges", "limitrange")
    },
    Resource {
        short_names: &["ns"],
        verbs: Verbs::NoDeleteCollection,
        name: Name::Label,
        selectable: &["status.phase"],
        subresources: &[
            Subresource {
                name: "finalize",
                what: Part::Finalize,
                verbs: &["update"],
                kind: "Namespace",
                of: None,
            },
            status("Namespace"),
        ],
        default: cluster::default_namespace,
        prepare_create: cluster::prepare_namespace,
        prepare_update: cluster::update_namespace,
        returns_deleted: true,
        ..of_cluster(CORE, "Namespace", "namespaces", "namespace")
    },
    Resource {
        short_names: &["no"],
        subresources: &[connect("proxy", PROXIED, "NodeProxyOptions"), status("Node")],
        selectable: &["spec.unschedulable"],
        status_on_create: true,
        default: cluster::default_node,
        prepare_create: cluster::prepare_node,
        ..of_cluster(CORE, "Node", "nodes", "node")
    },
    Resource {
        short_names: &["pvc"],
        subresources: &[status("PersistentVolumeClaim")],
        returns_deleted: true,
        default: cluster::default_volume_claim,
        prepare_create: cluster::prepare_volume_claim,
        validate: cluster::validate_volume_claim,
        validate_update: cluster::update_volume_claim,
        ..of_namespace(CORE, "PersistentVolumeClaim", "persistentvolumeclaims", "persistentvolumeclaim")
    },
    Resource {
        short_names: &["pv"],
        subresources: &[status("PersistentVolume")],
        returns_deleted: true,
        default: cluster::default_volume,
        prepare_create: cluster::prepare_volume,
        validate: cluster::validate_volume,
        ..of_cluster(CORE, "PersistentVolume", "persistentvolumes", "persistentvolume")
    },
    Resource {
        short_names: &["po"],
        categories: ALL,
        returns_deleted: true,
        generation: true,
        selectable: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
            "spec.host",
        ],
        subresources: &[
            connect("attach", OPENED, "PodAttachOptions"),
            BINDING,
            part("ephemeralcontainers", Part::EphemeralContainers, "Pod"),
            EVICTION,
            connect("exec", OPENED, "PodExecOptions"),
            connect("log", &["get"], "Pod"),
            connect("portforward", OPENED, "PodPortForwardOptions"),
            connect("proxy", PROXIED, "PodProxyOptions"),
            part("resize", Part::Resize, "Pod"),
            status("Pod"),
        ],
        default: pod::default,
        prepare_create: pod::prepare_create,
        validate: pod::validate,
        validate_update: pod::validate_update,
        ..of_namespace(CORE, "Pod", "pods", "pod")
    },
    Resource {
        default: workloads::default_pod_template,
        returns_deleted: true,
        generation: true,
        ..of_namespace(CORE, "PodTemplate", "podtemplates", "podtemplate")
    },
    Resource {
        short_names: &["rc"],
        categories: ALL,
        generation: true,
        subresources: &[SCALE, status("ReplicationController")],
        default: workloads::default_replication_controller,
        prepare_create: workloads::zero_replicas,
        selectable: &["status.replicas"],
        ..of_namespace(CORE, "ReplicationController", "replicationcontrollers", "replicationcontroller")
    },
    Resource {
        short_names: &["quota"],
        subresources: &[status("ResourceQuota")],
        returns_deleted: true,
        prepare_create: cluster::empty_status,
        prepare_update: quota::update,
        validate: quota::validate,
        validate_update: quota::validate_update,
        ..of_namespace(CORE, "ResourceQuota", "resourcequotas", "resourcequota")
    },
    Resource {
        selectable: &["type"],
        default: config::default_secret,
        validate: config::validate_secret,
        validate_update: config::update_secret,
        ..of_namespace(CORE, "Secret", "secrets", "secret")
    },
    Resource {
        short_names: &["sa"],
        returns_deleted: true,
        subresources: &[Subresource {
            name: "token",
            what: Part::Token,
            verbs: &["create"],
            kind: "TokenRequest",
            of: Some(AUTHENTICATION),
        }],
        ..of_namespace(CORE, "ServiceAccount", "serviceaccounts", "serviceaccount")
    },
    Resource {
        short_names: &["svc"],
        categories: ALL,
        name: Name::ServiceLabel,
        returns_deleted: true,
        subresources: &[connect("proxy", PROXIED, "ServiceProxyOptions"), status("Service")],
        selectable: &["spec.clusterIP", "spec.type"],
        default: service::default_service,
        prepare_create: service::prepare_service,
        prepare_update: service::update_service,
        validate: service::validate_service,
        validate_update: service::validate_service_update,
        ..of_namespace(CORE, "Service", "services", "service")
    },
    Resource { ..of_namespace(APPS, "ControllerRevision", "controllerrevisions", "controllerrevision") },
    Resource {
        short_names: &["ds"],
        categories: ALL,
        generation: true,
        subresources: &[status("DaemonSet")],
        default: workloads::default_daemon_set,
        prepare_create: workloads::prepare_daemon_set,
        prepare_update: workloads::update_daemon_set,
        validate: workloads::validate_daemon_set,
        validate_update: workloads::keep_selector,
        ..of_namespace(APPS, "DaemonSet", "daemonsets", "daemonset")
    },
    Resource {
        short_names: &["deploy"],
        categories: ALL,
        generation: true,
        subresources: &[SCALE, status("Deployment")],
        default: workloads::default_deployment,
        prepare_create: workloads::empty_status,
        validate: workloads::validate_deployment,
        validate_update: workloads::keep_selector,
        ..of_namespace(APPS, "Deployment", "deployments", "deployment")
    },
    Resource {
        short_names: &["rs"],
        categories: ALL,
        generation: true,
        subresources: &[SCALE, status("ReplicaSet")],
        selectable: &["status.replicas"],
        default: workloads::default_replica_set,
        prepare_create: workloads::zero_replicas,
        validate: workloads::validate_replica_set,
        validate_update: workloads::keep_selector,
        ..of_namespace(APPS, "ReplicaSet", "replicasets", "replicaset")
    },
    Resource {
        short_names: &["sts"],
        categories: ALL,
        generation: true,
        subresources: &[SCALE, status("StatefulSet")],
        default: workloads::default_stateful_set,
        prepare_create: workloads::prepare_stateful_set,
        validate: workloads::validate_stateful_set,
        validate_update: workloads::update_stateful_set,
        ..of_namespace(APPS, "StatefulSet", "statefulsets", "statefulset")
    },
    Resource {
        verbs: Verbs::Create,
        ..of_cluster(AUTHENTICATION, "SelfSubjectReview", "selfsubjectreviews", "selfsubjectreview")
    },
    Resource {
        verbs: Verbs::Create,
        ..of_cluster(AUTHENTICATION, "TokenReview", "tokenreviews", "tokenreview")
    },
    Resource {
        verbs: Verbs::Create,
        ..of_namespace(
            AUTHORIZATION,
            "LocalSubjectAccessReview",
            "localsubjectaccessreviews",
            "localsubjectaccessreview",
        )
    },
    Resource {
        verbs: Verbs::Create,
        ..of_cluster(
            AUTHORIZATION,
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
            "selfsubjectaccessreview",
        )
    },
    Resource {
        verbs: Verbs::Create,
        ..of_cluster(
            AUTHORIZATION,
            "SelfSubjectRulesReview",
            "selfsubjectrulesreviews",
            "selfsubjectrulesreview",
        )
    },
    Resource {
        verbs: Verbs::Create,
        ..of_cluster(AUTHORIZATION, "SubjectAccessReview", "subjectaccessreviews", "subjectaccessreview")
    },
    Resource {
        short_names: &["hpa"],
        categories: ALL,
        subresources: &[status("HorizontalPodAutoscaler")],
        default: autoscaler::default_autoscaler,
        prepare_create: autoscaler::prepare_autoscaler,
        validate: autoscaler::validate_autoscaler,
        ..of_namespace(
            ("autoscaling", "v2"),
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            "horizontalpodautoscaler",
        )
    },
    Resource {
        short_names: &["hpa"],
        categories: ALL,
        subresources: &[status("HorizontalPodAutoscaler")],
        default: autoscaler::default_autoscaler_v1,
        prepare_create: autoscaler::prepare_autoscaler_v1,
        validate: autoscaler::validate_autoscaler,
        stored: Some(Stored {
            group: "autoscaling",
            version: "v2",
            to: autoscaler::autoscaler_to_v2,
            from: autoscaler::autoscaler_from_v2,
        }),
        ..of_namespace(
            ("autoscaling", "v1"),
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            "horizontalpodautoscaler",
        )
    },
    Resource {
        short_names: &["cj"],
        categories: ALL,
        generation: true,
        subresources: &[status("CronJob")],
        default: workloads::default_cron_job,
        prepare_create: workloads::empty_status,
        validate: workloads::validate_cron_job,
        ..of_namespace(BATCH, "CronJob", "cronjobs", "cronjob")
    },
    Resource {
        categories: ALL,
        generation: true,
        subresources: &[status("Job")],
        selectable: &["status.successful"],
        default: workloads::default_job,
        prepare_create: workloads::prepare_job,
        validate: workloads::validate_job,
        validate_update: workloads::update_job,
        ..of_namespace(BATCH, "Job", "jobs", "job")
    },
    Resource {
        short_names: &["csr"],
        selectable: &["spec.signerName"],
        subresources: &[
            part("approval", Part::Approval, "CertificateSigningRequest"),
            status("CertificateSigningRequest"),
        ],
        prepare_create: cluster::empty_status,
        prepare_update: cluster::update_signing_request,
        validate: cluster::validate_signing_request,
        ..of_cluster(
            ("certificates.k8s.io", "v1"),
            "CertificateSigningRequest",
            "certificatesigningrequests",
            "certificatesigningrequest",
        )
    },
    Resource {
        validate: classes::validate_lease,
        ..of_namespace(("coordination.k8s.io", "v1"), "Lease", "leases", "lease")
    },
    Resource {
        generation: true,
        default: endpoints::default_endpoint_slice,
        validate: endpoints::validate_slice,
        validate_update: endpoints::update_slice,
        ..of_namespace(("discovery.k8s.io", "v1"), "EndpointSlice", "endpointslices", "endpointslice")
    },
    Resource {
        short_names: &["ev"],
        validate: event::validate_timed,
        stored: Some(Stored {
            group: "",
            version: "v1",
            to: cluster::event_to_core,
            from: cluster::event_from_core,
        }),
        ..of_namespace(("events.k8s.io", "v1"), "Event", "events", "event")
    },
    Resource { generation: true, ..of_cluster(NETWORKING, "IngressClass", "ingressclasses", "ingressclass") },
    Resource {
        short_names: &["ing"],
        generation: true,
        subresources: &[status("Ingress")],
        default: service::default_ingress,
        prepare_create: service::prepare_service,
        ..of_namespace(NETWORKING, "Ingress", "ingresses", "ingress")
    },
    Resource {
        short_names: &["netpol"],
        generation: true,
        default: service::default_network_policy,
        validate: service::validate_network_policy,
        ..of_namespace(NETWORKING, "NetworkPolicy", "networkpolicies", "networkpolicy")
    },
    Resource {
        validate: classes::validate_runtime_class,
        validate_update: classes::update_runtime_class,
        ..of_cluster(("node.k8s.io", "v1"), "RuntimeClass", "runtimeclasses", "runtimeclass")
    },
    Resource {
        short_names: &["pdb"],
        generation: true,
        subresources: &[status("PodDisruptionBudget")],
        prepare_create: cluster::prepare_budget,
        validate: cluster::validate_budget,
        ..of_namespace(("policy", "v1"), "PodDisruptionBudget", "poddisruptionbudgets", "poddisruptionbudget")
    },
    Resource {
        name: Name::PathSegment,
        default: cluster::default_binding,
        validate: cluster::validate_binding,
        validate_update: cluster::update_binding,
        ..of_cluster(RBAC, "ClusterRoleBinding", "clusterrolebindings", "clusterrolebinding")
    },
    Resource {
        name: Name::PathSegment,
        default: cluster::default_role,
        validate: cluster::validate_role,
        ..of_cluster(RBAC, "ClusterRole", "clusterroles", "clusterrole")
    },
    Resource {
        name: Name::PathSegment,
        default: cluster::default_binding,
        validate: cluster::validate_binding,
        validate_update: cluster::update_binding,
        ..of_namespace(RBAC, "RoleBinding", "rolebindings", "rolebinding")
    },
    Resource {
        name: Name::PathSegment,
        default: cluster::default_role,
        validate: cluster::validate_role,
        ..of_namespace(RBAC, "Role", "roles", "role")
    },
    Resource {
        short_names: &["pc"],
        generation: true,
        default: cluster::default_priority_class,
        validate_update: cluster::update_priority_class,
        ..of_cluster(("scheduling.k8s.io", "v1"), "PriorityClass", "priorityclasses", "priorityclass")
    },
    Resource {
        short_names: &["sc"],
        default: classes::default_storage_class,
        validate: classes::validate_storage_class,
        validate_update: classes::update_storage_class,
        ..of_cluster(("storage.k8s.io", "v1"), "StorageClass", "storageclasses", "storageclass")
    },
];

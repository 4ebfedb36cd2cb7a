//! The objects of `kinds`: one of every kind, and what upstream's printers say of it.

use crate::kinds::Kind;

pub const KINDS: &[Kind] = &[
    Kind(
        "namespaces",
        &["ns", "Active", "AGE"],
        &["Status: Active", "No resource quota."],
        r"apiVersion: v1
kind: Namespace
metadata: {name: ns}",
    ),
    Kind(
        "nodes",
        &[
            "b1",
            "Ready",
            "worker",
            "AGE",
            "v1.36.0",
            "10.0.0.7",
            "203.0.113.7",
            "Debian GNU/Linux 13",
            "6.12.0-arm64",
            "coracle://1.0",
        ],
        &[
            "Roles: worker",
            "InternalIP: 10.0.0.7",
            "Kernel Version: 6.12.0-arm64",
            "OS Image: Debian GNU/Linux 13",
            "Container Runtime Version: coracle://1.0",
            "Kubelet Version: v1.36.0",
            "Unschedulable: false",
            "cpu 100m (2%) 100m (2%)",
        ],
        r"apiVersion: v1
kind: Node
metadata: {name: b1, labels: {node-role.kubernetes.io/worker: '', kubernetes.io/hostname: b1}}
status:
  addresses: [{type: InternalIP, address: 10.0.0.7}, {type: ExternalIP, address: 203.0.113.7}, {type: Hostname, address: b1}]
  capacity: {cpu: '4', memory: 1Gi, pods: '110'}
  allocatable: {cpu: '4', memory: 1Gi, pods: '110'}
  conditions:
  - {type: Ready, status: 'True', reason: KubeletReady, lastHeartbeatTime: '2026-01-01T00:00:00Z', lastTransitionTime: '2026-01-01T00:00:00Z'}
  nodeInfo: {architecture: arm64, bootID: b, containerRuntimeVersion: 'coracle://1.0', kernelVersion: 6.12.0-arm64, kubeProxyVersion: '', kubeletVersion: v1.36.0, machineID: m, operatingSystem: linux, osImage: Debian GNU/Linux 13, systemUUID: s}",
    ),
    Kind(
        "configmaps",
        &["cm", "1", "AGE"],
        &["colour:", "blue"],
        r"apiVersion: v1
kind: ConfigMap
metadata: {name: cm}
data: {colour: blue}",
    ),
    Kind(
        "endpoints",
        &["ep", "10.1.0.1:80", "AGE"],
        &["Addresses: 10.1.0.1"],
        r"apiVersion: v1
kind: Endpoints
metadata: {name: ep}
subsets: [{addresses: [{ip: 10.1.0.1}], ports: [{port: 80}]}]",
    ),
    Kind(
        "events",
        &[
            "AGE",
            "Normal",
            "Started",
            "pod/p",
            "spec.containers{c}",
            "kubelet, b1",
            "hello",
            "AGE",
            "3",
            "ev",
        ],
        &["Reason: Started", "Message: hello", "Kind: Pod"],
        r"apiVersion: v1
kind: Event
metadata: {name: ev}
involvedObject: {kind: Pod, name: p, namespace: default, fieldPath: 'spec.containers{c}'}
reason: Started
message: hello
type: Normal
count: 3
source: {component: kubelet, host: b1}
firstTimestamp: '2026-01-01T00:00:00Z'
lastTimestamp: '2026-01-01T00:05:00Z'",
    ),
    Kind(
        "limitranges",
        &["lr", "TIME"],
        &["Container cpu - 4 100m 100m -"],
        r"apiVersion: v1
kind: LimitRange
metadata: {name: lr}
spec: {limits: [{type: Container, max: {cpu: '4'}, default: {cpu: 100m}}]}",
    ),
    // Nothing binds volumes yet: upstream's controller makes it `Available`.
    Kind(
        "persistentvolumes",
        &["pv", "1Gi", "RWO", "Retain", "Pending", "", "manual", "<unset>", "", "AGE", "Filesystem"],
        &["StorageClass: manual", "Reclaim Policy: Retain", "Path: /srv/pv"],
        r"apiVersion: v1
kind: PersistentVolume
metadata: {name: pv}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: manual
  local: {path: /srv/pv}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [b1]}]}]}}",
    ),
    Kind(
        "persistentvolumeclaims",
        &["pvc", "Pending", "", "", "", "manual", "<unset>", "AGE", "Filesystem"],
        &["StorageClass: manual", "Status: Pending"],
        r"apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: pvc}
spec: {accessModes: [ReadWriteOnce], storageClassName: manual, resources: {requests: {storage: 5Gi}}}",
    ),
    Kind(
        "pods",
        &["p", "0/1", "Pending", "0", "AGE", "<none>", "b1", "<none>", "<none>"],
        &["Node: b1/", "Image: app:1", "QoS Class: Burstable"],
        r"apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: 'app:1', resources: {requests: {cpu: 100m}, limits: {cpu: 100m}}}]",
    ),
    Kind(
        "podtemplates",
        &["pt", "c", "app:1", "app=pt"],
        &["Kind: PodTemplate", "Image: app:1"],
        r"apiVersion: v1
kind: PodTemplate
metadata: {name: pt}
template: {metadata: {labels: {app: pt}}, spec: {containers: [{name: c, image: 'app:1'}]}}",
    ),
    Kind(
        "replicationcontrollers",
        &["rc", "0", "0", "0", "AGE", "c", "app:1", "app=rc"],
        &["Replicas: 0 current / 0 desired"],
        r"apiVersion: v1
kind: ReplicationController
metadata: {name: rc}
spec: {replicas: 0, selector: {app: rc}, template: {metadata: {labels: {app: rc}}, spec: {containers: [{name: c, image: 'app:1'}]}}}",
    ),
    Kind(
        "resourcequotas",
        &["rq", "services.nodeports: 0/5", "limits.cpu: 100m/4", "AGE"],
        &["limits.cpu 100m 4", "services.nodeports 0 5"],
        r"apiVersion: v1
kind: ResourceQuota
metadata: {name: rq}
spec: {hard: {limits.cpu: '4', services.nodeports: '5'}}",
    ),
    Kind(
        "secrets",
        &["s", "Opaque", "1", "AGE"],
        &["Type: Opaque", "key: 5 bytes"],
        r"apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {key: value}",
    ),
    Kind(
        "serviceaccounts",
        &["sa", "AGE"],
        &["Mountable secrets: <none>"],
        r"apiVersion: v1
kind: ServiceAccount
metadata: {name: sa}",
    ),
    Kind(
        "services",
        &["svc", "ClusterIP", "10.96.0.77", "<none>", "80/TCP", "AGE", "app=svc"],
        &["IP: 10.96.0.77", "TargetPort: 80/TCP", "Session Affinity: None"],
        r"apiVersion: v1
kind: Service
metadata: {name: svc}
spec: {clusterIP: 10.96.0.77, selector: {app: svc}, ports: [{port: 80}]}",
    ),
    Kind(
        "controllerrevisions.apps",
        &["cr", "<none>", "3", "AGE"],
        &["Revision: 3", "Kind: ControllerRevision"],
        r"apiVersion: apps/v1
kind: ControllerRevision
metadata: {name: cr}
revision: 3
data: {a: b}",
    ),
    Kind(
        "daemonsets.apps",
        &["ds", "0", "0", "0", "0", "0", "disk=ssd", "AGE", "c", "app:1", "app=ds"],
        &["Node-Selector: disk=ssd", "Desired Number of Nodes Scheduled: 0"],
        r"apiVersion: apps/v1
kind: DaemonSet
metadata: {name: ds}
spec: {selector: {matchLabels: {app: ds}}, template: {metadata: {labels: {app: ds}}, spec: {nodeSelector: {disk: ssd}, containers: [{name: c, image: 'app:1'}]}}}",
    ),
    Kind(
        "deployments.apps",
        &["dep", "0/0", "0", "0", "AGE", "c", "app:1", "app=dep"],
        &["StrategyType: RollingUpdate", "RollingUpdateStrategy: 25% max unavailable, 25% max surge"],
        r"apiVersion: apps/v1
kind: Deployment
metadata: {name: dep}
spec: {replicas: 0, selector: {matchLabels: {app: dep}}, template: {metadata: {labels: {app: dep}}, spec: {containers: [{name: c, image: 'app:1'}]}}}",
    ),
    Kind(
        "replicasets.apps",
        &["rs", "0", "0", "0", "AGE", "c", "app:1", "app=rs"],
        &["Replicas: 0 current / 0 desired"],
        r"apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: rs}
spec: {replicas: 0, selector: {matchLabels: {app: rs}}, template: {metadata: {labels: {app: rs}}, spec: {containers: [{name: c, image: 'app:1'}]}}}",
    ),
    Kind(
        "statefulsets.apps",
        &["sts", "0/0", "AGE", "c", "app:1"],
        &["Update Strategy: RollingUpdate", "Partition: 0"],
        r"apiVersion: apps/v1
kind: StatefulSet
metadata: {name: sts}
spec: {replicas: 0, serviceName: svc, selector: {matchLabels: {app: sts}}, template: {metadata: {labels: {app: sts}}, spec: {containers: [{name: c, image: 'app:1'}]}}}",
    ),
    Kind(
        "horizontalpodautoscalers.autoscaling",
        &["hpa", "Deployment/nothing", "cpu: <unknown>/50%", "1", "3", "0", "AGE"],
        &["Reference: Deployment/nothing", "Max replicas: 3"],
        r"apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: hpa}
spec: {maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: nothing}, metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]}",
    ),
    Kind(
        "cronjobs.batch",
        &["cj", "0 3 * * *", "<none>", "True", "0", "<none>", "AGE", "c", "app:1", "<none>"],
        &["Schedule: 0 3 * * *", "Concurrency Policy: Allow", "Suspend: True"],
        r"apiVersion: batch/v1
kind: CronJob
metadata: {name: cj}
spec: {schedule: '0 3 * * *', suspend: true, jobTemplate: {spec: {template: {metadata: {labels: {app: cj}}, spec: {restartPolicy: Never, containers: [{name: c, image: 'app:1'}]}}}}}",
    ),
    Kind(
        "jobs.batch",
        &["job", "Suspended", "0/1", "", "AGE", "c", "app:1", "batch.kubernetes.io/controller-uid=UID"],
        &["Completions: 1", "Pods Statuses: 0 Active (0 Ready) / 0 Succeeded / 0 Failed"],
        r"apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec: {suspend: true, template: {metadata: {labels: {app: job}}, spec: {restartPolicy: Never, containers: [{name: c, image: 'app:1'}]}}}",
    ),
    Kind(
        "certificatesigningrequests.certificates.k8s.io",
        &["csr", "AGE", "example.com/signer", "admin", "24h", "Pending"],
        &["Status: Pending", "Common Name: ada", "Requesting User: admin"],
        r"apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: csr}
spec: {signerName: example.com/signer, expirationSeconds: 86400, usages: [client auth], request: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlISk1IQUNBUUF3RGpFTU1Bb0dBMVVFQXd3RFlXUmhNRmt3RXdZSEtvWkl6ajBDQVFZSUtvWkl6ajBEQVFjRApRZ0FFK3BGYzhHZjE5M0E4MUZsWUpoVHdFUG95NHdmek9iMUUvVzQ0U3BreXVtWFlNaS8rNjY2d2tDcUk0b2I4CkxlYU9GYzNOTnVWdUIxY3hIRCsrcGFSVmhhQUFNQW9HQ0NxR1NNNDlCQU1DQTBrQU1FWUNJUUM2em9LaXd2QVAKTkpJd1ZHUVdnSUtDMDZaekNLZU1sOWhSRU9WSU50SklYZ0loQUxCOTcybUZ5WDFCbG5NVXFsTW5DWDYxdTVhNAprUU83R3dNcWQvZ2VpSlBlCi0tLS0tRU5EIENFUlRJRklDQVRFIFJFUVVFU1QtLS0tLQo=}",
    ),
    Kind(
        "leases.coordination.k8s.io",
        &["l", "holder-1", "AGE"],
        &["Holder Identity: holder-1", "Lease Duration Seconds: 40"],
        r"apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: l}
spec: {holderIdentity: holder-1, leaseDurationSeconds: 40}",
    ),
    Kind(
        "endpointslices.discovery.k8s.io",
        &["es", "IPv4", "80", "10.1.0.1", "AGE"],
        &["AddressType: IPv4", "- Addresses: 10.1.0.1"],
        r"apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: es}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1]}]
ports: [{port: 80}]",
    ),
    Kind(
        "events.events.k8s.io",
        &[
            "AGE",
            "Warning",
            "Wet",
            "node/b1",
            "",
            "example.com/sensor, sensor-b1",
            "water",
            "AGE",
            "1",
            "ev2",
        ],
        &["Reason: Wet", "Note: water"],
        r"apiVersion: events.k8s.io/v1
kind: Event
metadata: {name: ev2}
regarding: {kind: Node, name: b1}
reason: Wet
note: water
type: Warning
action: Watching
eventTime: '2026-01-01T00:00:00.000000Z'
reportingController: example.com/sensor
reportingInstance: sensor-b1",
    ),
    Kind(
        "ingressclasses.networking.k8s.io",
        &["ic", "example.com/ingress", "<none>", "AGE"],
        &["Controller: example.com/ingress"],
        r"apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: ic}
spec: {controller: example.com/ingress}",
    ),
    Kind(
        "ingresses.networking.k8s.io",
        &["ing", "ic", "a.example", "", "80", "AGE"],
        &["Ingress Class: ic"],
        r"apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: ing}
spec: {ingressClassName: ic, rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: svc, port: {number: 80}}}}]}}]}",
    ),
    Kind(
        "networkpolicies.networking.k8s.io",
        &["np", "app=web", "AGE"],
        &["PodSelector: app=web", "Policy Types: Ingress"],
        r"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: np}
spec: {podSelector: {matchLabels: {app: web}}}",
    ),
    Kind(
        "runtimeclasses.node.k8s.io",
        &["rtc", "runc", "AGE"],
        &["Handler: runc"],
        r"apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: rtc}
handler: runc",
    ),
    Kind(
        "poddisruptionbudgets.policy",
        &["pdb", "1", "N/A", "0", "AGE"],
        &["Min available: 1", "Allowed disruptions: 0"],
        r"apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: pdb}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}",
    ),
    Kind(
        "clusterrolebindings.rbac.authorization.k8s.io",
        &["crb", "ClusterRole/view", "AGE", "ada", "ops", "default/sa"],
        &["Name: view", "User ada"],
        r"apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: crb}
roleRef: {kind: ClusterRole, name: view, apiGroup: rbac.authorization.k8s.io}
subjects: [{kind: User, name: ada, apiGroup: rbac.authorization.k8s.io}, {kind: Group, name: ops, apiGroup: rbac.authorization.k8s.io}, {kind: ServiceAccount, name: sa, namespace: default}]",
    ),
    Kind(
        "clusterroles.rbac.authorization.k8s.io",
        &["cro", "TIME"],
        &["nodes [] [] [get list]"],
        r"apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: cro}
rules: [{apiGroups: [''], resources: [nodes], verbs: [get, list]}]",
    ),
    Kind(
        "rolebindings.rbac.authorization.k8s.io",
        &["rb", "Role/ro", "AGE", "ada", "ops", "default/sa"],
        &["Kind: Role", "ServiceAccount sa default"],
        r"apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: rb}
roleRef: {kind: Role, name: ro, apiGroup: rbac.authorization.k8s.io}
subjects: [{kind: User, name: ada, apiGroup: rbac.authorization.k8s.io}, {kind: Group, name: ops, apiGroup: rbac.authorization.k8s.io}, {kind: ServiceAccount, name: sa, namespace: default}]",
    ),
    Kind(
        "roles.rbac.authorization.k8s.io",
        &["ro", "TIME"],
        &["pods [] [] [get]"],
        r"apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: ro}
rules: [{apiGroups: [''], resources: [pods], verbs: [get]}]",
    ),
    Kind(
        "priorityclasses.scheduling.k8s.io",
        &["pc", "1000", "false", "AGE", "PreemptLowerPriority"],
        &["Value: 1000", "PreemptionPolicy: PreemptLowerPriority"],
        r"apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: pc}
value: 1000",
    ),
    Kind(
        "storageclasses.storage.k8s.io",
        &["sc", "example.com/disk", "Delete", "Immediate", "false", "AGE"],
        &["Provisioner: example.com/disk", "ReclaimPolicy: Delete", "VolumeBindingMode: Immediate"],
        r"apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: sc}
provisioner: example.com/disk",
    ),
];

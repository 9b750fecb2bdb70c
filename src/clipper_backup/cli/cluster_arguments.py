"""Arguments of the commands that work in a Kubernetes cluster."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

StatefulSet = Annotated[str, Parameter(help="the StatefulSet whose first Pod runs the database")]
Namespace = Annotated[str | None, Parameter(help="where it is; unset: the Pod's own, or the kubeconfig's")]
Kubeconfig = Annotated[Path | None, Parameter(help="the cluster; unset: the Pod's account, then KUBECONFIG, then ~/.kube/config")]

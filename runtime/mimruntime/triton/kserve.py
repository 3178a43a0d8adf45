"""Write a KServe InferenceService for a model repository.

Fields: https://kserve.github.io/website/latest/reference/api/
"""

from __future__ import annotations

import json
import re

from mimruntime.manifest import Manifest
from mimruntime.triton.config import Options

_TEMPLATE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
  annotations:
    mimexport/embedding-space: {space}
spec:
  predictor:
    model:
      modelFormat:
        name: triton
      protocolVersion: v2
      storageUri: {storage}
      resources:
        limits:
          {resource}: {count}
"""


def manifest_yaml(manifest: Manifest, options: Options, storage_uri: str) -> str:
    """Return the YAML manifest: Triton with the v2 protocol and the repository at `storage_uri`."""
    resource, count = ("nvidia.com/gpu", len(options.gpus)) if options.gpus else ("cpu", options.instances)
    return _TEMPLATE.format(
        name=_dns_name(manifest.name),
        space=json.dumps(manifest.embedding_space),
        storage=json.dumps(storage_uri),
        resource=resource,
        count=json.dumps(str(count)),
    )


def _dns_name(name: str) -> str:
    """Return `name` as a valid Kubernetes name: lower-case letters, digits and dashes, at most 63 characters."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].strip("-") or "embedder"

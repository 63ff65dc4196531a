//go:build tools

// Names the programs that the image is built from, so that `go mod tidy` keeps what they need.
package tools

import (
	_ "k8s.io/kubernetes/cmd/kubelet"
)

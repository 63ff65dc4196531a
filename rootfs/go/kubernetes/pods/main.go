// The cluster's pods that every node runs, in one program: `pods kube-proxy FLAGS...` and `pods cni POD-CIDR`.
package main

import (
	"log"
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
)

func main() {
	if len(os.Args) > 1 {
		name := os.Args[1]
		os.Args = os.Args[1:]
		switch name {
		case "kube-proxy":
			os.Exit(cli.Run(app.NewProxyCommand()))
		case "cni":
			if err := cni(); err != nil {
				log.Fatal(err)
			}
			return
		}
	}
	log.Fatal("usage: pods kube-proxy FLAGS... | pods cni POD-CIDR")
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

const (
	conflist = "/etc/cni/net.d/10-cluster.conflist"
	protocol = 0xc9 // marks our routes among those of others, see ip-route(8)
	retry    = 2 * time.Second
	resync   = 30 * time.Second // what somebody else removed comes back
)

// The bridge plugin's own ipMasq would masquerade what goes to pods of other nodes, too.
const bridge = `{
  "cniVersion": "1.0.0",
  "name": "cluster",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "forceAddress": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{ "subnet": "%s" }]],
        "routes": [{ "dst": "0.0.0.0/0" }]
      }
    },
    { "type": "portmap", "backend": "nftables", "snat": true, "capabilities": { "portMappings": true } }
  ]
}
`

// Replaced as one: a table of that name is there to be deleted when it has just been added.
const rules = `
table ip cluster-cni
delete table ip cluster-cni
table ip cluster-cni {
  chain leaving {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr %[1]s ip daddr != %[1]s masquerade
  }
}
`

// cni gives this node's pods addresses of its podCIDR, and keeps a route to every other node's pods, until SIGTERM.
func cni() error {
	self := os.Getenv("NODE_NAME")
	if len(os.Args) != 2 || self == "" {
		return errors.New("usage: NODE_NAME=... pods cni POD-CIDR")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	config, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	nft := exec.CommandContext(ctx, "nft", "-f", "-")
	nft.Stdin = strings.NewReader(fmt.Sprintf(rules, os.Args[1]))
	if output, err := nft.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, output)
	}

	factory := informers.NewSharedInformerFactory(client, 0)
	nodes := factory.Core().V1().Nodes()
	changed := make(chan struct{}, 1)
	poke := func() {
		select {
		case changed <- struct{}{}:
		default: // once more is enough
		}
	}
	_, err = nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { poke() },
		UpdateFunc: func(any, any) { poke() },
		DeleteFunc: func(any) { poke() },
	})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for wait := resync; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-time.After(wait):
		}
		wait = resync
		all, err := nodes.Lister().List(labels.Everything())
		if err == nil {
			err = reconcile(self, all)
		}
		if err != nil {
			log.Print(err)
			wait = retry
		}
	}
}

func reconcile(self string, nodes []*v1.Node) error {
	var failed []error
	wanted := map[string]bool{}
	for _, node := range nodes {
		_, subnet, err := net.ParseCIDR(node.Spec.PodCIDR)
		if err != nil {
			continue // the controller manager has not come to it yet
		}
		if node.Name == self {
			failed = append(failed, configure(subnet))
			continue
		}
		wanted[subnet.String()] = true
		if gateway := address(node); gateway != nil {
			route := netlink.Route{Dst: subnet, Gw: gateway, Protocol: protocol}
			if err := netlink.RouteReplace(&route); err != nil {
				failed = append(failed, fmt.Errorf("route to %s of %s via %s: %w", subnet, node.Name, gateway, err))
			}
		}
	}
	ours, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: protocol}, netlink.RT_FILTER_PROTOCOL)
	failed = append(failed, err)
	for _, route := range ours {
		if !wanted[route.Dst.String()] {
			failed = append(failed, netlink.RouteDel(&route))
		}
	}
	return errors.Join(failed...)
}

func address(node *v1.Node) net.IP {
	for _, entry := range node.Status.Addresses {
		if entry.Type == v1.NodeInternalIP {
			return net.ParseIP(entry.Address)
		}
	}
	return nil
}

// configure writes the configuration whole or not at all: containerd reads it as soon as it is there.
func configure(subnet *net.IPNet) error {
	text := []byte(fmt.Sprintf(bridge, subnet))
	if present, err := os.ReadFile(conflist); err == nil && bytes.Equal(present, text) {
		return nil
	}
	partial := conflist + ".partial"
	if err := os.WriteFile(partial, text, 0o644); err != nil {
		return err
	}
	log.Printf("pods of this node: %s", subnet)
	return os.Rename(partial, conflist)
}

// Shows what a node of this pack says in words ("scaled to 1024×683, 66.7 %") on the node itself.
//
// Front ends draw the text that a node returns on core's own preview node alone.

import { app } from "../../../scripts/app.js";

const CATEGORY = "RealToon";
const WIDGET = "realtoon_report";
// What a node says while it runs; the front end's own, which it would save with the workflow.
const ANSWERS = [WIDGET, "$$node-text-preview"];
const LINE_PX = 16;
const MOST_LINES = 7;
// The element's own, and the margin that the front end takes off a DOM widget's height.
const PADDING_PX = 8 + 20;

function textElement() {
  const element = document.createElement("div");
  Object.assign(element.style, {
    boxSizing: "border-box",
    padding: "4px 10px",
    overflow: "auto",
    whiteSpace: "pre-wrap",
    overflowWrap: "anywhere",
    userSelect: "text",
    font: `12px/${LINE_PX}px sans-serif`,
    color: "var(--descrip-text, #bbb)",
  });
  return element;
}

function lineCount(text, width_px) {
  // About 6 px a letter: lines that the browser will break in two are counted so that they fit.
  const letters = Math.max(10, Math.floor((width_px - 40) / 6));
  return text.split("\n").reduce((sum, line) => {
    return sum + Math.max(1, Math.ceil(line.length / letters));
  }, 0);
}

function addWidget(node) {
  const element = textElement();
  const height = () => {
    const lines = Math.min(MOST_LINES, lineCount(element.textContent, node.size[0]));
    return lines * LINE_PX + PADDING_PX;
  };
  // Neither saved with the workflow nor sent with the prompt: it is an answer, not a setting.
  const widget = node.addDOMWidget(WIDGET, WIDGET, element, {
    serialize: false,
    getMinHeight: height,
    getValue: () => element.textContent,
    setValue: (text) => {
      element.textContent = text ?? "";
    },
  });
  widget.serialize = false;
  return widget;
}

function show(node, text) {
  const widget = node.widgets?.find((each) => each.name === WIDGET) ?? addWidget(node);
  widget.value = text;
  const [width, height] = node.size;
  const needed = node.computeSize()[1];
  if (height < needed) {
    node.setSize([width, needed]);
  }
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "RealToon.Report",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.category?.split("/")[0] !== CATEGORY) {
      return;
    }
    const save = nodeType.prototype.onSerialize;
    nodeType.prototype.onSerialize = function (saved, ...rest) {
      save?.call(this, saved, ...rest);
      const first = this.widgets?.findIndex((each) => ANSWERS.includes(each.name)) ?? -1;
      if (first >= 0 && saved.widgets_values?.length > first) {
        saved.widgets_values.length = first;
      }
    };
    const resized = nodeType.prototype.onResize;
    nodeType.prototype.onResize = function (...rest) {
      resized?.apply(this, rest);
      // A node that grows while it is drawn, by a preview for instance, keeps its old box otherwise.
      this.setDirtyCanvas(true, true);
    };
    const before = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (message, ...rest) {
      before?.call(this, message, ...rest);
      const text = message?.text;
      if (text?.length) {
        show(this, Array.isArray(text) ? text.join("\n") : String(text));
      }
    };
  },
});
